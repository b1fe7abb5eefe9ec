//! What goes from device to device for one image.

use serde::Serialize;

use super::layout::{Costs, Layout};
use crate::{
    backend::DeviceId,
    error::Result,
    pipeline::{Component, placement::Place},
};

/// What goes from one device to another for one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// The replica, counted from 0.
    pub replica: usize,
    /// Made here.
    pub from: DeviceId,
    /// Used there.
    pub to: DeviceId,
    /// What it is.
    pub what: &'static str,
    /// All of it for one image, in bytes.
    pub bytes_per_image: u64,
}

/// What crosses between the devices of each replica for one image.
pub(super) fn edges(costs: &Costs, layouts: &[Layout]) -> Result<Vec<Edge>> {
    let (spec, largest) = (costs.trial.spec, costs.trial.largest);
    let texts = if largest.guided { 2 } else { 1 };
    let features = 4 * (texts * spec.text_encoder.text_length * spec.unet.cross_attention_dim) as u64;
    let scale = spec.vae.scale();
    let latents = 4 * (largest.width / scale * (largest.height / scale) * spec.unet.in_channels) as u64;
    let mut edges: Vec<Edge> = Vec::new();
    for (replica, layout) in layouts.iter().enumerate() {
        let mut add = |from: DeviceId, to: DeviceId, what: &'static str, bytes_per_image: u64| {
            let edge = Edge { replica, from, to, what, bytes_per_image };
            if from == to || bytes_per_image == 0 || edges.contains(&edge) {
                return;
            }
            let same = |e: &&mut Edge| (e.replica, e.from, e.to, e.what) == (replica, from, to, what);
            match edges.iter_mut().find(same) {
                // Tensors of one kind add up; several places of a pool are alternatives.
                Some(known) if matches!(what, BORDER | SKIPS) => known.bytes_per_image += bytes_per_image,
                Some(known) => known.bytes_per_image = known.bytes_per_image.max(bytes_per_image),
                None => edges.push(edge),
            }
        };
        let last = |route: &[DeviceId]| *route.last().expect("a route has sections");
        for place in &layout.placement.unet {
            let routes = place.routes();
            let home = routes.last().expect("a place has a route")[0];
            for text in layout.placement.text_encoder.iter().flat_map(Place::routes) {
                let each = features / routes.len() as u64;
                routes.iter().for_each(|route| add(last(text), route[0], "text features", each));
            }
            if let [negative, _] = routes[..] {
                add(home, negative[0], "latents", costs.calls as u64 * latents);
                add(last(negative), home, "guidance", costs.calls as u64 * latents);
            }
            for vae in layout.placement.vae.iter().flat_map(Place::routes) {
                add(home, vae[0], "latents", latents);
            }
        }
        for (component, places) in layout.placement.iter() {
            let calls = if component == Component::Unet { costs.calls as u64 } else { 1 };
            for route in places.iter().flat_map(Place::routes) {
                if route.iter().all(|id| *id == route[0]) {
                    continue;
                }
                for crossing in costs.crossings(component, route)? {
                    let what = if crossing.skip { SKIPS } else { BORDER };
                    add(crossing.from, crossing.to, what, calls * crossing.bytes);
                }
                if component == Component::Unet {
                    add(last(route), route[0], "model output", calls * latents);
                }
            }
        }
    }
    Ok(edges)
}

const BORDER: &str = "section border";
const SKIPS: &str = "skip tensors";
