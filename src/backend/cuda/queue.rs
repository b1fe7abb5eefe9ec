//! The compute queue: kernels that it is given again and again as one go as one graph.
//!
//! Between [`Queue::hold`] and [`Queue::release`] kernels are written down rather than enqueued. A list that was there
//! before, to the last address, is one launch of a graph; any other is launched kernel by kernel. So a graph never needs to
//! know what it stands for: weights, arenas and shapes that change make another list.

use std::sync::{Arc, Mutex};

use super::driver::{self, Call, Context, Graph, Stream};
use crate::{
    backend::Weight,
    error::{Error, Result},
    sync::locked,
};

/// Lists that are remembered: a few shapes and batches of each of a few requests in flight, whose keys and values lie in
/// different places.
const REMEMBERED: usize = 8;

/// A stream for kernels, and the graphs that were made of what it was given.
pub struct Queue {
    stream: Stream,
    graphs: Use,
    state: Mutex<State>,
}

/// Whether graphs are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Graphs,
    Launches,
}

#[derive(Default)]
struct State {
    /// What is held back; `None` while nothing is to be.
    held: Option<Held>,
    /// The latest one last.
    known: Vec<Known>,
}

/// Kernels that are not enqueued yet, and the weights that they use: whoever drops one meanwhile must not free its memory.
/// Arenas launch what is held back before they go.
#[derive(Default)]
struct Held {
    calls: Vec<Call>,
    weights: Vec<Weight>,
}

/// A list of kernels that came at least once.
struct Known {
    calls: Vec<Call>,
    graph: GraphState,
}

enum GraphState {
    /// It was recorded once, and may not be needed again.
    Recorded,
    Captured(Graph),
    /// The driver makes no graph of it.
    Unsupported,
}

impl Queue {
    /// A queue of `context`.
    ///
    /// # Errors
    /// If the driver makes none, or `SDSHARD_CUDA_GRAPHS` is neither `on` nor `off`.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        let setting = std::env::var_os("SDSHARD_CUDA_GRAPHS").unwrap_or("on".into());
        let graphs = match setting.to_str() {
            Some("on") if driver::has_graphs() => Use::Graphs,
            Some("on" | "off") => Use::Launches,
            _ => {
                return Err(
                    Error::input("SDSHARD_CUDA_GRAPHS is neither \"on\" nor \"off\"").found(setting.to_string_lossy())
                );
            }
        };
        Ok(Self { stream: Stream::new(context)?, graphs, state: Mutex::default() })
    }

    /// The stream, behind everything that the queue was given: for whatever is no kernel. What is held back is launched.
    pub fn stream(&self) -> Result<&Stream> {
        // Taken out first: weights that go with it may ask for this queue.
        let held = locked(&self.state).held.take();
        if let Some(held) = held {
            self.launch_each(&held.calls)?;
        }
        Ok(&self.stream)
    }

    /// Enqueues a kernel that uses `weights`, or holds it back.
    pub fn launch(&self, call: Call, weights: &[&Weight]) -> Result<()> {
        match &mut locked(&self.state).held {
            Some(held) => {
                held.calls.push(call);
                held.weights.extend(weights.iter().copied().cloned());
                Ok(())
            }
            None => self.stream.launch(&call),
        }
    }

    /// Holds kernels back from here on.
    pub fn hold(&self) {
        if self.graphs == Use::Graphs {
            locked(&self.state).held.get_or_insert_default();
        }
    }

    /// Enqueues what was held back.
    pub fn release(&self) -> Result<()> {
        // Dropped after the lock: weights that go may ask for this queue.
        let _weights;
        // Locked to the end: nobody comes between these kernels.
        let state = &mut *locked(&self.state);
        let Some(Held { calls, weights }) = state.held.take() else { return Ok(()) };
        _weights = weights;
        if calls.is_empty() {
            return Ok(());
        }
        let Some(i) = state.known.iter().position(|known| known.calls == calls) else {
            self.launch_each(&calls)?;
            if state.known.len() == REMEMBERED {
                state.known.remove(0);
            }
            state.known.push(Known { calls, graph: GraphState::Recorded });
            return Ok(());
        };
        state.known[i..].rotate_left(1);
        let known = state.known.last_mut().expect("it was found");
        if matches!(known.graph, GraphState::Recorded) {
            known.graph = Graph::new(&self.stream, &calls).map_or_else(
                |error| {
                    tracing::warn!("{error}; {} kernels are launched one by one", calls.len());
                    GraphState::Unsupported
                },
                GraphState::Captured,
            );
        }
        match &known.graph {
            // SAFETY: it was made of a list equal to `calls`, to the last address, and these are to be launched now.
            GraphState::Captured(graph) => unsafe { self.stream.replay(graph) },
            GraphState::Recorded | GraphState::Unsupported => self.launch_each(&calls),
        }
    }

    fn launch_each(&self, calls: &[Call]) -> Result<()> {
        calls.iter().try_for_each(|call| self.stream.launch(call))
    }
}
