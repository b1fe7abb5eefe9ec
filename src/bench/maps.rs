//! Runs several device maps end to end, and compares each with what its plan predicted.

use std::{sync::Arc, time::Instant};

use serde::Serialize;

use super::median;
use crate::{
    backend::{self, DeviceId},
    device_map::DeviceMap,
    engine::Engine,
    error::Result,
    pipeline::{Model, request::Request},
    planner::{Largest, plan::Plan},
};

/// The options of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The number of pictures that are requested at the same time; `None` is twice the number of requests that the
    /// plan with the most has in flight, at least 2.
    pub images: Option<usize>,
    /// The number of rounds, in each of which every map runs once.
    pub rounds: usize,
}

/// What was measured of several maps.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The number of pictures that were requested at the same time.
    pub images: usize,
    /// The maps that run on this machine, the fastest first.
    pub maps: Vec<Figures>,
    /// The maps that do not: name and reason.
    pub failed: Vec<(String, String)>,
}

/// The figures of one map: medians over all rounds, in seconds.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// The name of the map.
    pub name: String,
    /// The devices that the plan uses.
    pub devices: Vec<DeviceId>,
    /// The number of replicas.
    pub replicas: usize,
    /// The time for loading.
    pub load_s: f64,
    /// The time of the first picture behind it, which touches memory for the first time.
    pub first_s: f64,
    /// The time of one picture when nothing else is requested.
    pub one_s: f64,
    /// What the plan says of it.
    pub planned_one_s: f64,
    /// The time of all pictures that are requested at the same time.
    pub all_s: f64,
    /// What the plan says of it.
    pub planned_all_s: f64,
    /// The bytes that the plan says: weights and arenas of all devices.
    pub planned_bytes: u64,
    /// The most bytes in a round of the weights and the working memory of all devices, each at its peak; without what
    /// requests keep between steps, and without what drivers occupy.
    pub peak_bytes: u64,
}

/// One round of one map: times in seconds.
struct Round {
    load: f64,
    first: f64,
    one: f64,
    all: f64,
    peak_bytes: usize,
}

/// Runs every map in turn, as often as there are rounds: with the same request again and again, whose seed counts up.
/// `on_round` is called before each map of a round with the number of the round, from 0, and the map's name.
///
/// A map that does not run here is listed with its reason, and does not stop the others.
pub fn maps(
    model: &Arc<Model>,
    maps: &[(String, DeviceMap)],
    request: &Request,
    settings: &Settings,
    mut on_round: impl FnMut(usize, &str),
) -> Report {
    let devices = backend::visible();
    let plan = |map: &DeviceMap, images: usize| {
        let largest = Largest::of([request], &model.spec)?.expect("there is a request");
        Plan::resolve(map, &model.spec, &Largest { images, ..largest }, &devices)
    };
    let in_flight = |plan: Plan| plan.replicas.iter().map(|replica| replica.in_flight * replica.batch).sum::<usize>();
    let images = settings.images.unwrap_or_else(|| {
        let most = maps.iter().filter_map(|(_, map)| plan(map, usize::MAX).ok()).map(in_flight).max();
        2 * most.unwrap_or(1)
    });
    let mut runs: Vec<_> =
        maps.iter().map(|(name, map)| (name.as_str(), plan(map, images).map(|plan| (plan, Vec::new())))).collect();
    for number in 0..settings.rounds {
        for (name, run) in &mut runs {
            let Ok((plan, rounds)) = run else { continue };
            on_round(number, name);
            match round(model, plan, request, images) {
                Ok(round) => rounds.push(round),
                Err(error) => *run = Err(error),
            }
        }
    }
    let (mut maps, mut failed) = (Vec::new(), Vec::new());
    for (name, run) in runs {
        match run {
            Ok((plan, rounds)) => maps.push(figures(name, &plan, &rounds, images)),
            Err(error) => failed.push((name.to_owned(), error.to_string())),
        }
    }
    maps.sort_by(|a, b| a.all_s.total_cmp(&b.all_s));
    Report { images, maps, failed }
}

fn round(model: &Arc<Model>, plan: &Plan, request: &Request, images: usize) -> Result<Round> {
    let mut seed = request.seed;
    let mut seconds = |engine: &Engine, count: usize| {
        let started = Instant::now();
        let submit = |_| {
            seed = seed.wrapping_add(1);
            engine.submit(Request { seed, ..request.clone() })
        };
        let tickets = (0..count).map(submit).collect::<Result<Vec<_>>>()?;
        tickets.into_iter().try_for_each(|ticket| ticket.wait().map(drop))?;
        Ok(started.elapsed().as_secs_f64())
    };
    let started = Instant::now();
    let engine = Engine::load(model.clone(), plan)?;
    let load = started.elapsed().as_secs_f64();
    let (first, one) = (seconds(&engine, 1)?, seconds(&engine, 1)?);
    // Every replica has made a picture before all are measured together.
    seconds(&engine, plan.replicas.len())?;
    let all = seconds(&engine, images)?;
    let peaks = engine.peak_bytes().into_iter().chain(engine.peak_weight_bytes());
    Ok(Round { load, first, one, all, peak_bytes: peaks.map(|(_, bytes)| bytes).sum() })
}

fn figures(name: &str, plan: &Plan, rounds: &[Round], images: usize) -> Figures {
    let of = |value: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        median(&values)
    };
    Figures {
        name: name.to_owned(),
        devices: plan.devices.iter().map(|device| device.id).collect(),
        replicas: plan.replicas.len(),
        load_s: of(|round| round.load),
        first_s: of(|round| round.first),
        one_s: of(|round| round.one),
        planned_one_s: plan.seconds_per_image,
        all_s: of(|round| round.all),
        planned_all_s: plan.seconds_for(images),
        planned_bytes: plan.total_bytes(),
        peak_bytes: rounds.iter().map(|round| round.peak_bytes as u64).max().unwrap_or_default(),
    }
}
