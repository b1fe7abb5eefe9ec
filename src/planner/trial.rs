//! Dry runs: the real model code runs on devices without data, which gives the exact bytes of a placed component.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

use super::{effort::Effort, largest::Largest, tuning::Tuning};
use crate::{
    backend::{Device, DeviceId, DeviceInfo, PersistentArena, Precision, dry},
    error::{Error, Result},
    models::{
        component::{ComponentId, PerComponent, Stage},
        route::{PersistentArenas, Route, SectionHooks},
        spec::ModelSpec,
    },
    pipeline::{
        Instance,
        model::{Source, load},
        placement::{Place, Reside, Sections},
        rehearse::{Sample, rehearse},
    },
    scheduler::Schedule,
    weights::{Ahead, Packed, Weights},
};

/// The memory that one component needs on a device, and the work that it does there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Cost {
    /// The largest number of bytes of packed weights on the device at one time: all of them, or two neighbouring
    /// sections if they are offloaded.
    pub weight_bytes: u64,
    /// The largest size of the transient arena, in bytes.
    pub activation_bytes: u64,
    /// The largest size of the persistent arena of one request, in bytes.
    pub keep_bytes: u64,
    /// The floating-point operations of one call: one text, one UNet call, or one picture.
    pub flops: f64,
    /// The seconds of one call at the device's rates.
    pub seconds: f64,
    /// The seconds before the first call of each picture, for the keys and values of the text.
    pub prepare_seconds: f64,
}

impl Cost {
    /// The bytes that it occupies between calls.
    pub(super) fn resident_bytes(&self) -> u64 {
        self.weight_bytes + self.keep_bytes
    }

    /// The bytes that it needs on a device that it has for itself.
    pub(super) fn alone_bytes(&self) -> u64 {
        self.resident_bytes() + self.activation_bytes
    }

    /// The maximum of both costs in each field.
    fn max(self, other: Self) -> Self {
        Self {
            weight_bytes: self.weight_bytes.max(other.weight_bytes),
            activation_bytes: self.activation_bytes.max(other.activation_bytes),
            keep_bytes: self.keep_bytes.max(other.keep_bytes),
            flops: self.flops.max(other.flops),
            seconds: self.seconds.max(other.seconds),
            prepare_seconds: self.prepare_seconds.max(other.prepare_seconds),
        }
    }
}

/// The result of a dry run of a component in one place.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DryRun {
    /// The cost on each device.
    pub costs: Vec<(DeviceId, Cost)>,
    /// The work of each section in one call; empty for a guided place, which has two branches.
    pub sections: Vec<SectionWork>,
    /// The tensors that sections pass to other sections in one call.
    pub transfers: Vec<SectionTransfer>,
    /// The bytes of packed weights that are offloaded to host memory.
    pub host_bytes: u64,
}

/// The work and memory of one section in a call.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SectionWork {
    /// The floating-point operations of matrix products.
    pub flops: f64,
    /// The seconds at the rates of its device.
    pub seconds: f64,
    /// The bytes of its packed weights.
    pub weight_bytes: u64,
    /// The bytes that a request keeps on its device: keys and values of the text, and the latents of the first section.
    pub keep_bytes: u64,
}

/// A tensor that one section passes to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SectionTransfer {
    /// The section that produces the tensor.
    pub from: usize,
    /// The section that uses the tensor.
    pub to: usize,
    /// The size in bytes.
    pub bytes: u64,
}

/// Records the work of each section during a dry run.
struct Recorder<'a> {
    /// The cost counter of each section's device.
    counters: Vec<&'a dry::CostCounter>,
    /// The persistent arena of each section's device.
    arenas: Vec<&'a PersistentArena>,
    state: Mutex<Recording>,
}

#[derive(Default)]
struct Recording {
    /// The current section, with the work of its device and the bytes of its arena when the section began.
    current: Option<(usize, dry::Work, usize)>,
    sections: Vec<SectionWork>,
    transfers: Vec<SectionTransfer>,
}

impl<'a> Recorder<'a> {
    fn new(counters: Vec<&'a dry::CostCounter>, arenas: Vec<&'a PersistentArena>) -> Self {
        let sections = vec![SectionWork::default(); counters.len()];
        Self { counters, arenas, state: Mutex::new(Recording { sections, ..Recording::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, Recording> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the work since the current section began to this section.
    fn finish_section(&self) {
        let state = &mut *self.state();
        if let Some((section, before, kept)) = state.current.take() {
            let now = self.counters[section].so_far();
            let work = &mut state.sections[section];
            work.flops += now.flops - before.flops;
            work.seconds += now.seconds - before.seconds;
            work.keep_bytes += (self.arenas[section].peak_bytes() - kept) as u64;
        }
    }

    /// Resets the recorded work before a call; persistent bytes are kept.
    fn begin_call(&self) {
        self.finish_section();
        let state = &mut *self.state();
        state.sections.iter_mut().for_each(|work| (work.flops, work.seconds) = (0.0, 0.0));
        state.transfers.clear();
    }

    fn finish(self) -> (Vec<SectionWork>, Vec<SectionTransfer>) {
        self.finish_section();
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        (state.sections, state.transfers)
    }
}

impl SectionHooks for Recorder<'_> {
    fn enter(&self, section: usize) -> Result<()> {
        self.finish_section();
        let at = (section, self.counters[section].so_far(), self.arenas[section].peak_bytes());
        self.state().current = Some(at);
        Ok(())
    }

    fn transfer(&self, from: usize, to: usize, bytes: usize) {
        self.state().transfers.push(SectionTransfer { from, to, bytes: bytes as u64 });
    }
}

/// The inputs of dry runs, and the results so far.
pub(super) struct Trial<'a> {
    pub spec: &'a ModelSpec,
    /// The devices that places may use.
    pub devices: &'a [DeviceInfo],
    pub largest: &'a Largest,
    pub schedule: Schedule,
    /// The requested data type of each component; `None` is the default type of the device.
    pub dtypes: PerComponent<Option<Precision>>,
    /// The number of sections of each component.
    pub sections: PerComponent<usize>,
    /// The counter of planning steps.
    pub effort: &'a Effort,
    /// Results by component, place and batch: planning asks for the same places several times.
    cache: RefCell<HashMap<DryRunKey, Rc<DryRun>>>,
}

/// A component, its place, and the batch size.
type DryRunKey = (ComponentId, Place<DeviceId>, usize);

impl<'a> Trial<'a> {
    pub fn new(
        spec: &'a ModelSpec,
        devices: &'a [DeviceInfo],
        largest: &'a Largest,
        dtypes: PerComponent<Option<Precision>>,
        effort: &'a Effort,
    ) -> Result<Self> {
        let mut schedule = largest.schedule(spec)?;
        // Later steps change the arenas only by what a solver keeps of earlier steps.
        schedule.steps.truncate(2 * crate::scheduler::HISTORY);
        let sections = spec.components.map(|_, component| component.network.sections().len());
        Ok(Self { spec, devices, largest, schedule, dtypes, sections, effort, cache: RefCell::default() })
    }

    /// Makes a dry run of a component in `place` with every batch size up to `batch`. The result has the largest cost
    /// on each device over all batch sizes and picture sizes, and the section work of the largest ones.
    pub fn run(&self, component: ComponentId, place: &Place<DeviceId>, batch: usize) -> Result<Rc<DryRun>> {
        let stage = self.spec.components[component].stage();
        // Texts are encoded and pictures are decoded one by one.
        let batch = if stage == Stage::Denoise { batch } else { 1 };
        let key = (component, place.clone(), batch);
        if let Some(result) = self.cache.borrow().get(&key) {
            return Ok(result.clone());
        }
        let run = |size, batch| self.run_one(component, place, size, batch).map_err(Error::refused);
        let size = (self.largest.width, self.largest.height);
        let mut result = run(size, batch)?;
        let sizes = if stage == Stage::Encode { &[][..] } else { &self.largest.also };
        let others =
            (1..batch).map(|batch| (size, batch)).chain(sizes.iter().flat_map(|&s| (1..=batch).map(move |b| (s, b))));
        for (size, batch) in others {
            for ((_, most), (_, cost)) in result.costs.iter_mut().zip(run(size, batch)?.costs) {
                *most = most.max(cost);
            }
        }
        let result = Rc::new(result);
        self.cache.borrow_mut().insert(key, result.clone());
        Ok(result)
    }

    /// The cost on each device, for one picture at a time.
    pub fn cost(&self, component: ComponentId, place: &Place<DeviceId>) -> Result<Vec<(DeviceId, Cost)>> {
        Ok(self.run(component, place, 1)?.costs.clone())
    }

    /// Makes one dry run, for a size in pixels.
    fn run_one(
        &self,
        component: ComponentId,
        place: &Place<DeviceId>,
        (width, height): (usize, usize),
        batch: usize,
    ) -> Result<DryRun> {
        // A denoiser counts once for each step. A text encoder or a decoder does about the work of one step.
        let spec = &self.spec.components[component];
        let steps = if spec.stage() == Stage::Denoise { self.schedule.steps.len() as u64 } else { 1 };
        self.effort.spend(Tuning::DRY_RUN_STEPS * steps)?;
        let ids = place.devices();
        let dry: Vec<(Device, Arc<dry::CostCounter>)> = ids.iter().map(|&id| self.dry_device(component, id)).collect();
        let index = |id: &DeviceId| ids.iter().position(|known| known == id).expect("its own device");
        let take = || -> Vec<dry::Work> { dry.iter().map(|(_, counter)| counter.take()).collect() };
        let packed = Packed::default();
        let source = |sections: &Sections<DeviceId>| Source {
            route: Route::new(
                sections.iter().map(|id| (dry[index(id)].0.clone(), self.dtype(component, *id))).collect(),
            ),
            reside: sections.reside,
            packed: packed.clone(),
            ahead: Ahead::Caller,
        };
        let routes = place.routes();
        let positive = routes[routes.len() - 1];

        let arenas = PersistentArenas::new(
            dry.iter().map(|(device, _)| device.persistent_arena(usize::MAX)).collect::<Result<_>>()?,
        );
        let each_arena: Vec<&PersistentArena> = arenas.iter().collect();
        let recorder = Recorder::new(
            positive.iter().map(|id| &*dry[index(id)].1).collect(),
            positive.iter().map(|id| each_arena[index(id)]).collect(),
        );
        let load = |sections| load(spec, Weights::shapes_only(&spec.name), &source(sections));
        let network = load(positive)?;
        let offload = network.offload.clone();
        let negative = match routes.as_slice() {
            // Two branches in the same place share the weights.
            [negative, _] if *negative == positive => Some(network.clone()),
            [negative, _] => Some(load(negative)?),
            _ => None,
        };
        let instance = Instance { negative, positive: network };
        take();
        let mut prepared = vec![dry::Work::default(); ids.len()];
        let (guided, schedule) = (self.largest.guided, &self.schedule);
        let masked = self.largest.masked && !self.spec.takes_mask();
        let sample = Sample {
            width,
            height,
            batch,
            guided,
            chunks: self.largest.chunks,
            masked,
            tiled: self.largest.vae_tiling,
            schedule,
        };
        let calls = rehearse(self.spec, component, &instance, &arenas, &sample, &recorder, |done| {
            if done == 0 {
                // The keys and values of the text are not part of any step.
                prepared = take();
            }
            if done == 0 || done + 1 == schedule.steps.len() {
                recorder.begin_call();
            }
            Ok(())
        })?;
        // The recorder must finish before the counters are reset.
        let (mut sections, transfers) = recorder.finish();
        let costs =
            dry.iter().zip(take()).zip(prepared).zip(&each_arena).map(|((((device, _), work), prepared), arena)| {
                let cost = Cost {
                    weight_bytes: device.weight_peak_bytes() as u64,
                    activation_bytes: device.peak_bytes() as u64,
                    keep_bytes: arena.peak_bytes() as u64,
                    flops: work.flops / calls as f64,
                    seconds: work.seconds / calls as f64,
                    prepare_seconds: prepared.seconds,
                };
                (device.id(), cost)
            });
        let costs = costs.collect();
        for (i, section) in sections.iter_mut().enumerate() {
            section.weight_bytes = offload.as_ref().map_or(0, |offload| offload.bytes(i) as u64);
        }
        let packed = packed.lock().unwrap_or_else(PoisonError::into_inner);
        let resting = packed.iter().filter(|((reside, ..), _)| *reside == Reside::Host);
        let host_bytes = resting.flat_map(|(_, homes)| homes).map(|(_, weight)| weight.bytes() as u64).sum();
        let sections = if routes.len() == 1 { sections } else { Vec::new() };
        Ok(DryRun { costs, sections, transfers, host_bytes })
    }

    fn dry_device(&self, component: ComponentId, id: DeviceId) -> (Device, Arc<dry::CostCounter>) {
        let info = self.info(component, id);
        Device::dry(id, info.rules, info.rates)
    }

    /// The data type of a component's weights on a device.
    pub fn dtype(&self, component: ComponentId, id: DeviceId) -> Precision {
        self.info(component, id).rules.precision()
    }

    /// The description of a device with the data type of `component`.
    pub fn info(&self, component: ComponentId, id: DeviceId) -> DeviceInfo {
        let info = self.devices.iter().find(|device| device.id == id).expect("places are on usable devices");
        info.in_type(self.dtypes[component]).expect("planning begins with a look at the types")
    }

    /// The cost of a whole component on one device.
    pub fn whole(&self, component: ComponentId, device: DeviceId) -> Result<Cost> {
        let place = Place::whole(device, self.sections[component]);
        Ok(self.cost(component, &place)?[0].1)
    }

    /// The dry run from which cuts are chosen: the work of each section, and the tensors between sections.
    pub fn table(&self, component: ComponentId, device: DeviceId) -> Result<Rc<DryRun>> {
        let devices = vec![device; self.sections[component]];
        // With weights on disk, the bytes of each section's weights are recorded separately.
        self.run(component, &Place::Route(Sections { devices, reside: Reside::Disk }), 1)
    }
}
