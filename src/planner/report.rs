//! A plan as a table for users.

use std::{collections::BTreeSet, fmt};

use super::{
    plan::{ComponentPlan, Plan, ReplicaPlan},
    words::{device_list, per_second, seconds},
};
use crate::{
    backend::DeviceId,
    device_map::size::format_bytes,
    models::component::PerComponent,
    pipeline::placement::{Place, Reside, Sections, each_once},
};

/// The largest number of lines of a list; the number of further lines is printed.
const LINES: usize = 12;

/// Prints the first lines of a list under a title.
fn list(f: &mut fmt::Formatter<'_>, title: &str, lines: &[String]) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{title}")?;
    lines.iter().take(LINES).try_for_each(|line| writeln!(f, "  {line}"))?;
    match lines.len().saturating_sub(LINES) {
        0 => Ok(()),
        more => writeln!(f, "  and {more} more; --json has them all"),
    }
}

/// A line such as `0: text_encoder and vae cuda:0, unet cuda:1 | cuda:2; 3 in flight`, with `|` inside pools.
fn replica_line(components: &PerComponent<ComponentPlan>, number: usize, replica: &ReplicaPlan) -> String {
    let mut places: Vec<(Vec<&str>, String)> = Vec::new();
    for (component, pool) in replica.placement.iter() {
        let here = pool.iter().map(place_words).collect::<Vec<_>>().join(" | ");
        let name = components[component].name.as_str();
        match places.iter_mut().find(|(_, known)| *known == here) {
            Some((names, _)) => names.push(name),
            None => places.push((vec![name], here)),
        }
    }
    let words = match &places[..] {
        [(_, all)] => format!("all of it {all}"),
        several => {
            several.iter().map(|(names, here)| format!("{} {here}", names.join(" and "))).collect::<Vec<_>>().join(", ")
        }
    };
    let in_flight = if replica.in_flight > 1 { format!("; {} in flight", replica.in_flight) } else { String::new() };
    format!("{number}: {words}{in_flight}")
}

/// The devices of a place, and the residence of its weights if they are offloaded.
fn place_words(place: &Place<DeviceId>) -> String {
    let route = |route: &Sections<DeviceId>| {
        let devices = device_list(&each_once(route.iter().copied()));
        match route.reside {
            Reside::Device => devices,
            Reside::Host => format!("{devices} (weights from the host)"),
            Reside::Disk => format!("{devices} (weights from disk)"),
        }
    };
    match place {
        Place::Route(sections) => route(sections),
        Place::Guided { negative, positive } => format!("{} beside {}", route(negative), route(positive)),
    }
}

impl fmt::Display for Plan {
    /// Prints the plan as a table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = format_bytes;
        let placed = self.device_map();
        let devices = |component: &ComponentPlan| device_list(&placed[component.name.as_str()]);
        let widest = |least: usize, length: &dyn Fn(&ComponentPlan) -> usize| {
            self.components.iter().map(|(_, component)| length(component)).fold(least, usize::max)
        };
        let (name, width) = (widest(13, &|component| component.name.len()), widest(18, &|it| devices(it).len()));
        writeln!(
            f,
            "{:<name$} {:<width$} {:>10} {:>12} {:>10} {:>9}  numerics",
            "component", "device", "weights", "activations", "GFLOP", "time"
        )?;
        for (id, component) in self.components.iter() {
            let cost = &component.cost;
            writeln!(
                f,
                "{:<name$} {:<width$} {:>10} {:>12} {:>10.1} {:>9}  {}",
                component.name,
                devices(component),
                bytes(cost.weight_bytes),
                bytes(cost.activation_bytes + cost.keep_bytes),
                cost.flops / 1e9,
                seconds(component.seconds),
                self.classes(id).join(", "),
            )?;
        }
        self.warnings().iter().try_for_each(|line| writeln!(f, "{line}"))?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<13} {:>10} {:>12} {:>10} {:>10} {:>10} {:>6}",
            "device", "weights", "activations", "kept", "in all", "of", "idle"
        )?;
        for device in &self.devices {
            writeln!(
                f,
                "{:<13} {:>10} {:>12} {:>10} {:>10} {:>10} {:>5.0}%",
                device.id.to_string(),
                bytes(device.weight_bytes + device.visitor_bytes),
                bytes(device.activation_bytes),
                bytes(device.keep_bytes),
                bytes(device.total_bytes()),
                bytes(device.budget_bytes),
                100.0 * device.idle_share,
            )?;
        }
        for overhead in self.devices.iter().map(|device| device.overhead_bytes).collect::<BTreeSet<_>>() {
            let with = self.devices.iter().filter(|device| device.overhead_bytes == overhead);
            let names = device_list(&with.map(|device| device.id).collect::<Vec<_>>());
            if overhead > 0 {
                writeln!(
                    f,
                    "{names:<13} {:>10}  of the sum are the driver's: its context and kernels",
                    bytes(overhead)
                )?;
            }
        }
        if let Some(shared) = self.shared_weight_bytes {
            writeln!(
                f,
                "{:<13} {:>10}  one copy of the weights in host memory, for all of cpu:N",
                "cpu",
                bytes(shared)
            )?;
        }
        if self.host_weight_bytes > 0 {
            writeln!(f, "{:<13} {:>10}  offloaded weights in host memory", "host", bytes(self.host_weight_bytes))?;
        }
        if self.replicas.len() > 1 {
            let line = |(number, replica)| replica_line(&self.components, number, replica);
            list(f, "replicas", &self.replicas.iter().enumerate().map(line).collect::<Vec<_>>())?;
        }
        let edge = |edge: &super::plan::Edge| {
            let replica = if self.replicas.len() > 1 { format!("replica {}: ", edge.replica) } else { String::new() };
            format!("{replica}{} to {}: {} {}", edge.from, edge.to, bytes(edge.bytes_per_image), edge.what)
        };
        list(f, "moves for each picture", &self.edges.iter().map(edge).collect::<Vec<_>>())?;
        list(f, "why", &self.reasons)?;
        let rejected = self.rejected.iter().map(|rejected| format!("{}: {}", rejected.what, rejected.why));
        list(f, "not chosen", &rejected.collect::<Vec<_>>())?;
        let mut replicas = match self.replicas.len() {
            1 => "1 replica".to_string(),
            n => format!("{n} replicas"),
        };
        if let Some(most) = self.replicas.iter().map(|replica| replica.in_flight).max().filter(|most| *most > 1) {
            replicas += &format!(", {most} requests in flight");
        }
        write!(
            f,
            "\n{replicas}; pictures up to {}x{}{}, {} steps{}; {} in all\none picture in {}, {} with many",
            self.largest.width,
            self.largest.height,
            match self.largest.also.len() {
                0 => String::new(),
                n => format!(" and {n} other sizes"),
            },
            self.largest.steps,
            if self.largest.strength < 1.0 { format!(" at strength {}", self.largest.strength) } else { String::new() },
            bytes(self.total_bytes()),
            seconds(self.seconds_per_image),
            per_second(self.images_per_second),
        )?;
        match self.largest.images {
            0 | 1 | usize::MAX => Ok(()),
            images => write!(f, ", {images} pictures in {}", seconds(self.seconds_in_all())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_listed_together() {
        for (devices, words) in [
            ("cuda:0", "cuda:0"),
            ("cuda:0 cuda:1", "cuda:0, cuda:1"),
            ("cuda:0 cuda:1 cuda:2 cuda:5 cpu", "cuda:0 to cuda:2, cuda:5, cpu"),
            ("wgpu:1 wgpu:0 cuda:3 cuda:4 cuda:5", "wgpu:1, wgpu:0, cuda:3 to cuda:5"),
        ] {
            let devices: Vec<DeviceId> = devices.split(' ').map(|name| name.parse().unwrap()).collect();
            assert_eq!(device_list(&devices), words);
        }
    }
}
