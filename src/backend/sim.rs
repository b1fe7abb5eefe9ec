//! A device that takes its time on a simulated clock and fails when it is told to: for everything that has to be right
//! when devices are slow, unequal or broken.
//!
//! It computes nothing, as a dry device, so the real pipeline runs on it. An op is only put at the end of what the device
//! still has to do, unless it is to be waited for; who reads waits for all of it.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use super::{
    Backend, Buffer, DType, DeviceId, Form, Fusion, NumericsClass, Op, Rates, Slab, Values, Weight,
    dry::{CostCounter, Dry},
    rules::Rules,
};
use crate::{
    error::{Error, Result},
    sync::Clock,
};

/// How long ops take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// As long as operations and bytes do at these rates.
    Rates(Rates),
    /// The same time for every op.
    PerOp(Duration),
}

/// What matrix products do by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fusions {
    /// As the device that is imitated.
    Native,
    /// Nothing: plain ops follow.
    None,
}

/// How long whoever asks for an op waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// Only for what it reads, as on a GPU.
    ToRead,
    /// For every op, as on a CPU.
    ForEach,
}

/// An op that is about to begin.
#[derive(Debug, Clone, Copy)]
pub struct OpStart<'a> {
    /// The device.
    pub device: DeviceId,
    /// Ops before it on this device.
    pub number: u64,
    /// Its name: an op's own, or `write`, `read` or `copy`.
    pub name: &'static str,
    /// What comes from the host, if it is a write.
    pub written: &'a [u8],
}

/// A fault that is injected into an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and so does every later one: the device is lost.
    Fail,
    /// It takes so long.
    Delay(Duration),
}

/// Decides which fault is injected into which op.
pub type Faults = Box<dyn Fn(&OpStart) -> Option<Fault> + Send + Sync>;

/// What a simulated device is like.
pub struct Setup {
    /// What it holds and fuses.
    pub rules: Rules,
    /// How fast it is.
    pub pace: Pace,
    /// What it fuses of what it could.
    pub fusions: Fusions,
    /// How long its ops are waited for.
    pub waits: Waits,
    /// Faults of its ops.
    pub faults: Faults,
    /// The clock that it waits on.
    pub clock: Clock,
}

/// What a simulated device has done, shared with whoever made it.
#[derive(Default)]
pub struct Record(Mutex<State>);

#[derive(Default)]
struct State {
    ops: u64,
    busy: Duration,
    /// When everything that was enqueued will be done.
    done_at: Option<Instant>,
    died_at: Option<(u64, &'static str)>,
}

impl Record {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in this file panics between two writes.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// How many ops it was given.
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// How long it worked.
    pub fn busy(&self) -> Duration {
        self.state().busy
    }

    /// At which op it died.
    pub fn died_at(&self) -> Option<&'static str> {
        self.state().died_at.map(|(_, name)| name)
    }
}

/// The backend of a simulated device.
pub struct Sim {
    id: DeviceId,
    dry: Dry,
    counter: Arc<CostCounter>,
    record: Arc<Record>,
    setup: Setup,
}

impl Sim {
    pub(super) fn new(id: DeviceId, setup: Setup) -> (Self, Arc<Record>) {
        let rates = match setup.pace {
            Pace::Rates(rates) => rates,
            // The time of an op is known without them.
            Pace::PerOp(_) => Rates { flops: 1.0, bandwidth: 1.0, link: 1.0 },
        };
        let (counter, record) = (Arc::<CostCounter>::default(), Arc::<Record>::default());
        let dry = Dry::new(id, setup.rules, rates, counter.clone());
        (Self { id, dry, counter, record: record.clone(), setup }, record)
    }

    /// Puts an op at the end of the queue, and gives the time when it will be done.
    fn enqueue(&self, name: &'static str, written: &[u8], op: impl FnOnce(&Dry) -> Result<()>) -> Result<Instant> {
        let mut state = self.record.state();
        let number = state.ops;
        state.ops += 1;
        let fault = (self.setup.faults)(&OpStart { device: self.id, number, name, written });
        if fault == Some(Fault::Fail) && state.died_at.is_none() {
            state.died_at = Some((number, name));
        }
        if let Some((number, name)) = state.died_at {
            return Err(Error::device(self.id, format!("it died at its op {number}, {name}")));
        }
        self.counter.take();
        op(&self.dry)?;
        let seconds = self.counter.take().seconds;
        let time = match (fault, self.setup.pace) {
            (Some(Fault::Delay(time)), _) | (None, Pace::PerOp(time)) => time,
            (_, _) => Duration::from_secs_f64(seconds),
        };
        state.busy += time;
        let now = self.setup.clock.now();
        let done_at = state.done_at.map_or(now, |done_at| done_at.max(now)) + time;
        state.done_at = Some(done_at);
        Ok(done_at)
    }

    fn op(&self, name: &'static str, op: impl FnOnce(&Dry) -> Result<()>) -> Result<()> {
        self.write_op(name, &[], op)
    }

    fn write_op(&self, name: &'static str, written: &[u8], op: impl FnOnce(&Dry) -> Result<()>) -> Result<()> {
        let done_at = self.enqueue(name, written, op)?;
        if self.setup.waits == Waits::ForEach {
            self.setup.clock.sleep_until(done_at);
        }
        Ok(())
    }
}

impl Backend for Sim {
    fn class(&self) -> &NumericsClass {
        self.dry.class()
    }

    fn weight_home(&self) -> &str {
        self.dry.weight_home()
    }

    fn computes_in(&self, dtype: DType) -> bool {
        self.dry.computes_in(dtype)
    }

    fn slab(&self, bytes: usize) -> Result<Slab> {
        self.dry.slab(bytes)
    }

    fn pack(&self, form: Form, weight: Values, bias: Option<Values>) -> Result<Weight> {
        self.dry.pack(form, weight, bias)
    }

    fn packed_bytes(&self, form: Form) -> usize {
        self.dry.packed_bytes(form)
    }

    fn fetch(&self, resting: &Weight) -> Result<Weight> {
        self.dry.fetch(resting)
    }

    fn supports(&self, fusion: Fusion) -> bool {
        match self.setup.fusions {
            Fusions::Native => self.dry.supports(fusion),
            Fusions::None => fusion == Fusion::default(),
        }
    }

    fn scratch(&self, op: &Op) -> Option<usize> {
        self.dry.scratch(op)
    }

    fn run(&self, op: &Op, scratch: Option<&mut Buffer>, out: &mut Buffer) -> Result<()> {
        self.op(op.name(), |dry| dry.run(op, scratch, out))
    }

    fn write(&self, bytes: &[u8], out: &mut Buffer) -> Result<()> {
        self.write_op("write", bytes, |dry| dry.write(bytes, out))
    }

    fn read(&self, x: &Buffer, bytes: &mut [u8]) -> Result<()> {
        let done_at = self.enqueue("read", &[], |dry| dry.read(x, bytes))?;
        self.setup.clock.sleep_until(done_at);
        Ok(())
    }

    fn copy(&self, x: &Buffer, from: usize, out: &mut Buffer, to: usize, bytes: usize) -> Result<()> {
        self.op("copy", |dry| dry.copy(x, from, out, to, bytes))
    }
}
