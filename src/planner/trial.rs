//! What a placed component asks of its devices, to the byte: the real model code, run without data.

use std::{cell::RefCell, collections::BTreeSet, sync::Arc};

use crate::{
    backend::{DType, Device, DeviceId, DeviceInfo, dry},
    error::{Error, Result},
    models::{
        route::{Keeps, Route},
        spec::ModelSpec,
        unet::Unet,
    },
    pipeline::{
        Component, Network, PerComponent, UnetPlace, branches,
        model::{load_text_encoder, load_unet, load_vae, sections},
        placement::Place,
        request::Request,
        stages::{self, Denoise, Noise},
    },
    scheduler::{Schedule, SchedulerKind, schedule},
    tensor::Shape,
    weights::Weights,
};

/// The largest request that a plan is made for.
#[derive(Debug, Clone, PartialEq)]
pub struct Largest {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Width and height of those requests that have other sizes: a long strip needs more than a square of its area.
    pub also: Vec<(usize, usize)>,
    /// Whether negative prompts are used: two texts instead of one.
    pub guided: bool,
    /// The solver, which decides how many past estimates are kept; `None` is the model's own.
    pub scheduler: Option<SchedulerKind>,
    /// Steps; a run shorter than a solver's memory keeps less.
    pub steps: usize,
}

impl Largest {
    /// What to plan for `requests`: the size of the one with the most pixels, guidance if one of them has it, and the
    /// solver that keeps most.
    pub fn of<'a>(requests: impl IntoIterator<Item = &'a Request>, spec: &ModelSpec) -> Result<Option<Self>> {
        let mut largest: Option<(Self, usize)> = None;
        let mut sizes = BTreeSet::new();
        for request in requests {
            let kept = schedule(&spec.scheduler_for(request.scheduler)?, request.steps)?.history();
            let (width, height, guided) = (request.width, request.height, request.guidance_scale > 1.0);
            sizes.insert((width, height));
            let (most, most_kept) = largest.get_or_insert_with(|| {
                let (scheduler, steps) = (request.scheduler, request.steps);
                (Self { width, height, also: Vec::new(), guided, scheduler, steps }, kept)
            });
            most.guided |= guided;
            if kept > *most_kept {
                (most.scheduler, most.steps, *most_kept) = (request.scheduler, request.steps, kept);
            }
            if width * height > most.width * most.height {
                (most.width, most.height) = (width, height);
            }
        }
        if let Some((most, _)) = &mut largest {
            sizes.remove(&(most.width, most.height));
            most.also = sizes.into_iter().collect();
        }
        Ok(largest.map(|(largest, _)| largest))
    }
}

/// What one component needs of a device and does there.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Packed weights.
    pub weight_bytes: u64,
    /// The most that the transient arena holds meanwhile.
    pub activation_bytes: u64,
    /// The most that one request keeps there between sections.
    pub keep_bytes: u64,
    /// Floating-point operations of one call: one text, one UNet call, one picture.
    pub flops: f64,
}

impl Cost {
    /// The larger one in each respect.
    fn max(self, other: Self) -> Self {
        Self {
            weight_bytes: self.weight_bytes.max(other.weight_bytes),
            activation_bytes: self.activation_bytes.max(other.activation_bytes),
            keep_bytes: self.keep_bytes.max(other.keep_bytes),
            flops: self.flops.max(other.flops),
        }
    }
}

/// What the planner runs the model with.
pub(super) struct Trial<'a> {
    pub spec: &'a ModelSpec,
    /// The devices that places may name.
    pub devices: &'a [DeviceInfo],
    pub largest: &'a Largest,
    pub schedule: Schedule,
    /// The type of each component's weights; `None` is what suits the device.
    dtypes: PerComponent<Option<DType>>,
    /// What was tried already: resolving a map asks for the same places several times.
    known: RefCell<Vec<(Component, Place<DeviceId>, Costs)>>,
}

/// What a component asks of each of its devices.
type Costs = Vec<(DeviceId, Cost)>;

impl<'a> Trial<'a> {
    pub fn new(
        spec: &'a ModelSpec,
        devices: &'a [DeviceInfo],
        largest: &'a Largest,
        dtypes: PerComponent<Option<DType>>,
    ) -> Result<Self> {
        let mut schedule = schedule(&spec.scheduler_for(largest.scheduler)?, largest.steps)?;
        // The arenas depend on the later steps only through how many estimates a solver keeps.
        schedule.steps.truncate(2 * crate::scheduler::HISTORY);
        Ok(Self { spec, devices, largest, schedule, dtypes, known: RefCell::default() })
    }

    /// Runs a component without data, placed as `place` says, and gives the most that it asked of each device for any
    /// of the sizes.
    pub fn cost(&self, component: Component, place: &Place<DeviceId>) -> Result<Costs> {
        let same = |(c, p, _): &&(Component, Place<DeviceId>, Costs)| *c == component && p == place;
        if let Some((_, _, costs)) = self.known.borrow().iter().find(same) {
            return Ok(costs.clone());
        }
        let cost_of = |size| self.cost_of(component, place, size).map_err(Error::refused);
        let mut costs = cost_of((self.largest.width, self.largest.height))?;
        if component != Component::TextEncoder {
            for &size in &self.largest.also {
                for ((_, most), (_, cost)) in costs.iter_mut().zip(cost_of(size)?) {
                    *most = most.max(cost);
                }
            }
        }
        self.known.borrow_mut().push((component, place.clone(), costs.clone()));
        Ok(costs)
    }

    /// The same for one size in pixels.
    fn cost_of(&self, component: Component, place: &Place<DeviceId>, (width, height): (usize, usize)) -> Result<Costs> {
        let ids = place.devices();
        let dry: Vec<(Device, Arc<dry::Ledger>)> = ids.iter().map(|&id| self.dry(component, id)).collect();
        let device = |id: &DeviceId| dry[ids.iter().position(|known| known == id).expect("its own device")].0.clone();
        let take = || -> Vec<dry::Work> { dry.iter().map(|(_, ledger)| ledger.take()).collect() };
        let routes: Vec<Route> = place.map(device).routes().into_iter().map(|r| Route::new(r.to_vec())).collect();
        let route = &routes[0];

        let weights = || Weights::shapes_only(component.name());
        let (spec, scale) = (self.spec, self.spec.vae.scale());
        let (height, width) = (height / scale, width / scale);
        let keeps = Keeps::new(dry.iter().map(|(device, _)| device.keep(usize::MAX)).collect::<Result<_>>()?);
        let (loaded, calls) = match component {
            Component::TextEncoder => {
                let encoder = load_text_encoder(weights(), spec, route)?;
                let loaded = take();
                stages::encode(&encoder, route, vec![0; spec.text_encoder.max_position_embeddings])?;
                (loaded, 1)
            }
            Component::Unet => {
                let mut unets: Vec<Arc<Unet>> = Vec::with_capacity(2);
                for (i, route) in routes.iter().enumerate() {
                    // Two branches in the same place share the weights.
                    unets.push(match unets.first() {
                        Some(unet) if place.routes()[i] == place.routes()[0] => unet.clone(),
                        _ => Arc::new(load_unet(weights(), spec, route)?),
                    });
                }
                let loaded = take();
                let mut networks = unets
                    .into_iter()
                    .zip(routes)
                    .map(|(network, route)| Network { network, route })
                    .collect::<Vec<_>>();
                let positive = networks.pop().expect("a place has a route");
                let place = UnetPlace { negative: networks.pop(), positive };
                let text = vec![0.0; spec.text_encoder.max_position_embeddings * spec.unet.cross_attention_dim];
                let texts = vec![text.into(); if self.largest.guided { 2 } else { 1 }];
                let denoise = Denoise {
                    spec,
                    schedule: &self.schedule,
                    guidance_scale: 2.0,
                    height,
                    width,
                    noise: Noise::zeros(),
                };
                stages::denoise(&branches(&place, texts, &keeps), denoise, |done| {
                    if done == 0 {
                        // The text's keys and values belong to no step.
                        take();
                    }
                    Ok(())
                })?;
                (loaded, self.schedule.steps.len())
            }
            Component::Vae => {
                let decoder = load_vae(weights(), spec, route)?;
                let loaded = take();
                let shape = Shape::from([1, height, width, spec.vae.latent_channels]);
                stages::decode(&decoder, route, shape, &vec![0.0; shape.elements()])?;
                (loaded, 1)
            }
        };
        let costs =
            dry.iter().zip(loaded).zip(take()).zip(keeps.iter()).map(|((((device, _), loaded), work), keep)| {
                let cost = Cost {
                    weight_bytes: loaded.weight_bytes,
                    activation_bytes: device.peak_bytes() as u64,
                    keep_bytes: keep.peak_bytes() as u64,
                    flops: work.flops / calls as f64,
                };
                (device.id(), cost)
            });
        Ok(costs.collect())
    }

    fn dry(&self, component: Component, id: DeviceId) -> (Device, Arc<dry::Ledger>) {
        let info = self.info(component, id);
        Device::dry(id, info.rules, info.rates)
    }

    /// A device with the weights of `component` in their type.
    pub fn info(&self, component: Component, id: DeviceId) -> DeviceInfo {
        let info = self.devices.iter().find(|device| device.id == id).expect("places are on usable devices");
        info.in_type(*self.dtypes.get(component)).expect("planning begins with a look at the types")
    }

    /// What a component costs whole, on one device.
    pub fn whole(&self, component: Component, device: DeviceId) -> Result<Cost> {
        let place = Place::whole(device, sections(component, self.spec).len());
        Ok(self.cost(component, &place)?[0].1)
    }
}
