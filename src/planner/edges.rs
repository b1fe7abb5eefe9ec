//! The tensors that are transferred between devices for one image.

use serde::Serialize;

use super::layout::{Costs, Layout};
use crate::{
    backend::DeviceId,
    error::Result,
    models::{component::Stage, spec::LatentSpec},
    pipeline::placement::Place,
};

/// The bytes of one kind that are transferred from one device to another for one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// The index of the replica, from 0.
    pub replica: usize,
    /// The device that produces the tensors.
    pub from: DeviceId,
    /// The device that uses the tensors.
    pub to: DeviceId,
    /// The kind of tensor in words: "text features", "latents", "skip tensors" and so on.
    pub what: &'static str,
    /// The total size for one image, in bytes.
    pub bytes_per_image: u64,
}

/// Lists the transfers between the devices of each replica for one image.
pub(super) fn edges(costs: &Costs, layouts: &[Layout]) -> Result<Vec<Edge>> {
    let (spec, largest) = (costs.trial.spec, costs.trial.largest);
    let texts = if largest.guided { 2 } else { 1 };
    let LatentSpec { channels, scale, .. } = spec.latents;
    let latents = 4 * (largest.width / scale * (largest.height / scale) * channels) as u64;
    let mut edges: Vec<Edge> = Vec::new();
    for (replica, layout) in layouts.iter().enumerate() {
        let mut add = |from: DeviceId, to: DeviceId, what: &'static str, bytes_per_image: u64| {
            let edge = Edge { replica, from, to, what, bytes_per_image };
            if from == to || bytes_per_image == 0 || edges.contains(&edge) {
                return;
            }
            let same = |e: &&mut Edge| (e.replica, e.from, e.to, e.what) == (replica, from, to, what);
            match edges.iter_mut().find(same) {
                // Tensors of the same network add up. Several places of a pool are alternatives, so the largest counts.
                Some(known) if matches!(what, BORDER | SKIPS) => known.bytes_per_image += bytes_per_image,
                Some(known) => known.bytes_per_image = known.bytes_per_image.max(bytes_per_image),
                None => edges.push(edge),
            }
        };
        let last = |route: &[DeviceId]| *route.last().expect("a route has sections");
        for place in &layout.placement[spec.denoiser()] {
            let routes = place.routes();
            let home = routes.last().expect("a place has a route")[0];
            for encoder in spec.in_stage(Stage::Encode) {
                let text = spec.components[encoder].network.text().expect("it encodes texts");
                let each = 4 * (texts * text.values(largest.chunks)) as u64 / routes.len() as u64;
                for text in layout.placement[encoder].iter().flat_map(Place::routes) {
                    routes.iter().for_each(|route| add(last(text), route[0], "text features", each));
                }
            }
            if let [negative, _] = routes[..] {
                add(home, negative[0], "latents", costs.calls as u64 * latents);
                add(last(negative), home, "guidance", costs.calls as u64 * latents);
            }
            let encoders = spec.in_stage(Stage::EncodeImage).flat_map(|encoder| &layout.placement[encoder]);
            encoders.flat_map(Place::routes).for_each(|encoder| add(last(encoder), home, "picture", 2 * latents));
            let decoders = spec.in_stage(Stage::Decode).flat_map(|decoder| &layout.placement[decoder]);
            decoders.flat_map(Place::routes).for_each(|decoder| add(home, decoder[0], "latents", latents));
        }
        for (component, places) in layout.placement.iter() {
            let is_denoiser = component == spec.denoiser();
            let calls = if costs.denoises(component) { costs.calls as u64 } else { 1 };
            for route in places.iter().flat_map(Place::routes) {
                if route.iter().all(|id| *id == route[0]) {
                    continue;
                }
                for transfer in costs.transfers(component, route)? {
                    let what = if transfer.is_skip { SKIPS } else { BORDER };
                    add(transfer.from, transfer.to, what, calls * transfer.bytes);
                }
                if is_denoiser {
                    add(last(route), route[0], "model output", calls * latents);
                }
            }
        }
    }
    Ok(edges)
}

const BORDER: &str = "section border";
const SKIPS: &str = "skip tensors";
