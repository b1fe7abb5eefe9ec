//! The compute queue, which launches repeated sequences of kernels as graphs.
//!
//! Between [`Queue::start_recording`] and [`Queue::submit_recorded`] kernels are recorded rather than enqueued. A list
//! that equals an earlier one, including all addresses, is launched as one graph; any other list is launched kernel by
//! kernel. So a graph does not need to know its meaning: other weights, arenas or shapes make another list.

use std::sync::{Arc, Mutex};

use super::driver::{self, Call, Context, Graph, Stream};
use crate::{
    backend::Weight,
    error::{Error, Result},
    sync::locked,
};

/// The number of lists that are kept: a few shapes and batches of each of a few requests in flight, whose keys and
/// values are at different addresses.
const REMEMBERED: usize = 8;

/// A stream for kernels, and the graphs of the lists that were launched on it.
pub struct Queue {
    stream: Stream,
    mode: LaunchMode,
    state: Mutex<State>,
}

/// How a repeated list is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LaunchMode {
    Graphs,
    Kernels,
}

#[derive(Default)]
struct State {
    /// The recorded kernels; `None` while nothing is recorded.
    recording: Option<Recording>,
    /// The lists that were launched, the latest one last.
    known: Vec<Known>,
}

/// Kernels that are not enqueued yet, and the weights that they use, which must not be freed meanwhile. Arenas launch
/// recorded kernels before they are freed.
#[derive(Default)]
struct Recording {
    calls: Vec<Call>,
    weights: Vec<Weight>,
}

/// A list of kernels that was launched at least once.
struct Known {
    calls: Vec<Call>,
    graph: GraphState,
}

enum GraphState {
    /// The list was launched once; a graph may not be needed.
    Recorded,
    Captured(Graph),
    /// The driver cannot create a graph of it.
    Unsupported,
}

impl Queue {
    /// A queue of `context`.
    ///
    /// # Errors
    /// If the driver cannot create it, or `SDSHARD_CUDA_GRAPHS` is neither `on` nor `off`.
    pub fn new(context: &Arc<Context>) -> Result<Self> {
        let setting = std::env::var_os("SDSHARD_CUDA_GRAPHS").unwrap_or("on".into());
        let mode = match setting.to_str() {
            Some("on") if driver::has_graphs() => LaunchMode::Graphs,
            Some("on" | "off") => LaunchMode::Kernels,
            _ => {
                return Err(
                    Error::input("SDSHARD_CUDA_GRAPHS is neither \"on\" nor \"off\"").found(setting.to_string_lossy())
                );
            }
        };
        Ok(Self { stream: Stream::new(context)?, mode, state: Mutex::default() })
    }

    /// The stream, for everything that is not a kernel. Recorded kernels are launched first.
    pub fn stream(&self) -> Result<&Stream> {
        // Taken out first, because dropping its weights may call this queue.
        let recording = locked(&self.state).recording.take();
        if let Some(recording) = recording {
            self.launch_each(&recording.calls)?;
        }
        Ok(&self.stream)
    }

    /// Enqueues a kernel that uses `weights`, or records it.
    pub fn launch(&self, call: Call, weights: &[&Weight]) -> Result<()> {
        match &mut locked(&self.state).recording {
            Some(recording) => {
                recording.calls.push(call);
                recording.weights.extend(weights.iter().copied().cloned());
                Ok(())
            }
            None => self.stream.launch(&call),
        }
    }

    /// Records kernels from here on.
    pub fn start_recording(&self) {
        if self.mode == LaunchMode::Graphs {
            locked(&self.state).recording.get_or_insert_default();
        }
    }

    /// Enqueues the recorded kernels.
    pub fn submit_recorded(&self) -> Result<()> {
        // Dropped after the lock, because dropping weights may call this queue.
        let _weights;
        // Locked to the end, so that no other thread enqueues between these kernels.
        let state = &mut *locked(&self.state);
        let Some(Recording { calls, weights }) = state.recording.take() else { return Ok(()) };
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
