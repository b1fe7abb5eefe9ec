//! A device that takes time on a simulated clock and fails as configured: for tests of everything that must be right
//! when devices are slow, unequal or broken.
//!
//! As a dry device, it computes nothing, so the real pipeline runs on it. An op is only appended to the device's
//! pending work, unless the device waits for each op; a read waits for all pending work.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use super::{
    Backend, Buffer, DType, DeviceId, Form, Fusion, Layer, NumericsClass, Op, Precision, Rates, Slab, Values, Weight,
    dry::{CostCounter, Dry},
    rules::Rules,
};
use crate::{
    error::{Error, Result},
    sync::Clock,
};

/// The time that ops take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// The time that operations and bytes take at these rates.
    Rates(Rates),
    /// The same time for every op.
    PerOp(Duration),
}

/// The epilogues that matrix products apply themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fusions {
    /// Those of the imitated device.
    Native,
    /// None: plain ops follow.
    None,
}

/// Which calls wait until the work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// Only reads, as on a GPU.
    ToRead,
    /// Every op, as on a CPU.
    ForEach,
}

/// An op that is about to begin.
#[derive(Debug, Clone, Copy)]
pub struct OpStart<'a> {
    /// The device's name.
    pub device: DeviceId,
    /// The number of ops before it on this device.
    pub number: u64,
    /// The op's name, or `write`, `read` or `copy`.
    pub name: &'static str,
    /// The bytes from the host, if it is a write.
    pub written: &'a [u8],
}

/// A fault that is injected into an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The op fails, and so does every later one: the device is lost.
    Fail,
    /// The op takes this long.
    Delay(Duration),
}

/// Returns the fault to inject into an op, if any.
pub type Faults = Box<dyn Fn(&OpStart) -> Option<Fault> + Send + Sync>;

/// The configuration of a simulated device.
pub struct Setup {
    /// The bytes that things occupy, and the ops that the device can fuse.
    pub rules: Rules,
    /// The time that ops take.
    pub pace: Pace,
    /// The fusions that it uses.
    pub fusions: Fusions,
    /// The calls that wait.
    pub waits: Waits,
    /// The faults of its ops.
    pub faults: Faults,
    /// The simulated clock.
    pub clock: Clock,
}

/// What a simulated device has done, shared with the caller that opened it.
#[derive(Default)]
pub struct Record(Mutex<State>);

#[derive(Default)]
struct State {
    ops: u64,
    busy: Duration,
    /// The time when all enqueued work is done.
    done_at: Option<Instant>,
    died_at: Option<(u64, &'static str)>,
}

impl Record {
    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock is usable: nothing in this file panics between two writes.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The number of ops that the device was given.
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// The time that the device worked.
    pub fn busy(&self) -> Duration {
        self.state().busy
    }

    /// The op at which the device was lost.
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
            // The time of an op does not depend on these rates.
            Pace::PerOp(_) => Rates { flops: 1.0, bandwidth: 1.0, link: 1.0 },
        };
        let (counter, record) = (Arc::<CostCounter>::default(), Arc::<Record>::default());
        let dry = Dry::new(id, setup.rules, rates, counter.clone());
        (Self { id, dry, counter, record: record.clone(), setup }, record)
    }

    /// Appends an op to the device's pending work and returns the time when it will be done.
    fn enqueue(&self, name: &'static str, written: &[u8], op: impl FnOnce(&Dry) -> Result<()>) -> Result<Instant> {
        let mut state = self.record.state();
        let number = state.ops;
        state.ops += 1;
        let fault = (self.setup.faults)(&OpStart { device: self.id, number, name, written });
        if fault == Some(Fault::Fail) && state.died_at.is_none() {
            state.died_at = Some((number, name));
        }
        if let Some((number, name)) = state.died_at {
            return Err(Error::device(self.id, format!("it failed at its op {number}, {name}")));
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

    fn input_type(&self, precision: Precision) -> Option<DType> {
        self.dry.input_type(precision)
    }

    fn form(&self, layer: Layer, precision: Precision, has_bias: bool) -> Option<Form> {
        self.dry.form(layer, precision, has_bias)
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

    fn fetch(&self, host_weight: &Weight) -> Result<Weight> {
        self.dry.fetch(host_weight)
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
