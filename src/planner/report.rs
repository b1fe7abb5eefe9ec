//! A plan as a table for people.

use std::{collections::BTreeSet, fmt};

use super::{
    choose::{per_second, seconds},
    plan::Plan,
    size::format_bytes,
};
use crate::backend::device::class_in;

impl fmt::Display for Plan {
    /// A table for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = format_bytes;
        writeln!(
            f,
            "{:<13} {:<18} {:>10} {:>12} {:>10}  numerics",
            "component", "device", "weights", "activations", "GFLOP"
        )?;
        for (component, cost) in self.costs.iter() {
            let devices: Vec<String> = self.device_map()[component.name()].iter().map(ToString::to_string).collect();
            let class = self.devices.iter().find(|device| device.components.contains(&component));
            writeln!(
                f,
                "{:<13} {:<18} {:>10} {:>12} {:>10.1}  {}",
                component.name(),
                devices.join(", "),
                bytes(cost.weight_bytes),
                bytes(cost.activation_bytes + cost.keep_bytes),
                cost.flops / 1e9,
                class.map_or_else(String::new, |device| class_in(&device.class, *self.dtypes.get(component))),
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<13} {:>10} {:>12} {:>10} {:>10} {:>10}",
            "device", "weights", "activations", "kept", "in all", "of"
        )?;
        for device in &self.devices {
            writeln!(
                f,
                "{:<13} {:>10} {:>12} {:>10} {:>10} {:>10}",
                device.id.to_string(),
                bytes(device.weight_bytes),
                bytes(device.activation_bytes),
                bytes(device.keep_bytes),
                bytes(device.total_bytes()),
                bytes(device.budget_bytes),
            )?;
        }
        for overhead in self.devices.iter().map(|device| device.overhead_bytes).collect::<BTreeSet<_>>() {
            let with = self.devices.iter().filter(|device| device.overhead_bytes == overhead);
            let names: Vec<String> = with.map(|device| device.id.to_string()).collect();
            if overhead > 0 {
                let names = names.join(", ");
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
        let mut replicas = match self.replicas.len() {
            1 => "1 replica".to_string(),
            n => format!("{n} replicas"),
        };
        if let Some(most) = self.replicas.iter().map(|replica| replica.in_flight).max().filter(|most| *most > 1) {
            replicas += &format!(", {most} requests in flight");
        }
        write!(
            f,
            "\n{replicas}; pictures up to {}x{}{}; {} in all",
            self.largest.width,
            self.largest.height,
            match self.largest.also.len() {
                0 => String::new(),
                n => format!(" and {n} other sizes"),
            },
            bytes(self.total_bytes())
        )
    }
}
