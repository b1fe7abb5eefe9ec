//! The tensors that are transferred between devices for one image.

use std::collections::BTreeMap;

use serde::Serialize;

use super::layout::{Costs, Layout};
use crate::{
    backend::DeviceId,
    error::Result,
    models::{
        component::{ComponentId, Stage},
        controlnet::ControlNet,
        network::NetworkSpec,
        spec::{LatentSpec, ModelSpec},
        unet::Unet,
    },
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
    /// The kind of tensor in words: "text features", "latents", "residuals" and so on.
    pub what: &'static str,
    /// The total size for one image, in bytes.
    pub bytes_per_image: u64,
}

/// Lists the transfers between the devices of each replica for one image.
pub(super) fn edges(costs: &Costs, layouts: &[Layout]) -> Result<Vec<Edge>> {
    let (spec, largest) = (costs.trial.spec, costs.trial.largest);
    let texts = if largest.guided { 2 } else { 1 };
    let LatentSpec { channels, scale, .. } = spec.latents;
    let (height, width, calls) = (largest.height / scale, largest.width / scale, costs.calls as u64);
    let latents = 4 * (width * height * channels) as u64;
    let mut edges: Vec<Edge> = Vec::new();
    for (replica, layout) in layouts.iter().enumerate() {
        // Several places of a pool are alternatives, so the largest counts.
        let mut add = |from: DeviceId, to: DeviceId, what: &'static str, bytes_per_image: u64| {
            if from == to || bytes_per_image == 0 {
                return;
            }
            match edges.iter_mut().find(|e| (e.replica, e.from, e.to, e.what) == (replica, from, to, what)) {
                Some(known) => known.bytes_per_image = known.bytes_per_image.max(bytes_per_image),
                None => edges.push(Edge { replica, from, to, what, bytes_per_image }),
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
                add(home, negative[0], "latents", calls * latents);
                add(last(negative), home, "guidance", calls * latents);
            }
            let encoders = spec.in_stage(Stage::EncodeImage).flat_map(|encoder| &layout.placement[encoder]);
            encoders.flat_map(Place::routes).for_each(|encoder| add(last(encoder), home, "picture", 2 * latents));
            let decoders = spec.in_stage(Stage::Decode).flat_map(|decoder| &layout.placement[decoder]);
            decoders.flat_map(Place::routes).for_each(|decoder| add(home, decoder[0], "latents", latents));
            for id in spec.controlnets() {
                let moved = residuals(spec, id, [texts, height, width]);
                for maker in layout.placement[id].iter().flat_map(Place::routes) {
                    add(home, maker[0], "latents", calls * latents);
                    for route in &routes {
                        let moved = moved.iter().map(|(from, to, bytes)| (maker[*from], route[*to], calls * bytes));
                        sums(moved).into_iter().for_each(|((from, to), bytes)| add(from, to, "residuals", bytes));
                    }
                }
            }
        }
        for (component, places) in layout.placement.iter() {
            let is_denoiser = component == spec.denoiser();
            let calls = if costs.denoises(component) { calls } else { 1 };
            for route in places.iter().flat_map(Place::routes) {
                if route.iter().all(|id| *id == route[0]) {
                    continue;
                }
                let transfers = costs.transfers(component, route)?;
                for (what, is_skip) in [("section border", false), ("skip tensors", true)] {
                    let moved = transfers.iter().filter(|transfer| transfer.is_skip == is_skip);
                    let moved = moved.map(|transfer| (transfer.from, transfer.to, calls * transfer.bytes));
                    sums(moved).into_iter().for_each(|((from, to), bytes)| add(from, to, what, bytes));
                }
                if is_denoiser {
                    add(last(route), route[0], "model output", calls * latents);
                }
            }
        }
    }
    Ok(edges)
}

/// The bytes that go from one device to another, for each two of them.
fn sums(moved: impl Iterator<Item = (DeviceId, DeviceId, u64)>) -> BTreeMap<(DeviceId, DeviceId), u64> {
    let mut sums = BTreeMap::new();
    for (from, to, bytes) in moved {
        *sums.entry((from, to)).or_default() += bytes;
    }
    sums
}

/// The residuals of a ControlNet in one step, for latents of this batch, height and width: the ControlNet's section that
/// makes each of them, the UNet's that takes it, and its bytes.
fn residuals(spec: &ModelSpec, controlnet: ComponentId, latents: [usize; 3]) -> Vec<(usize, usize, u64)> {
    let networks = (&spec.components[controlnet].network, &spec.components[spec.denoiser()].network);
    let (NetworkSpec::ControlNet(maker), NetworkSpec::Unet(taker)) = networks else {
        unreachable!("a ControlNet and a UNet")
    };
    let shapes = maker.contracting.feature_shapes(latents).into_iter();
    let sections = ControlNet::residual_sections(maker).into_iter().zip(Unet::residual_sections(taker));
    sections.zip(shapes).map(|((from, to), shape)| (from, to, 4 * shape.elements() as u64)).collect()
}
