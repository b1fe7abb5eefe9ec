//! Device maps for the CPUs of any machine: the shipped ones, and random ones.

use sdshard::{
    DeviceMap,
    backend::{DeviceId, DeviceKind},
    device_map::SHIPPED,
    models::{
        network::NetworkSpec,
        spec::{ComponentSpec, ModelSpec},
    },
};

/// The shipped maps that every machine has devices for, with their names; `tests/planner/plans.rs` plans those that name
/// GPUs.
pub fn shipped_for_cpus() -> impl Iterator<Item = (&'static str, &'static str)> {
    let is_cpu = |id: DeviceId| matches!(id.kind, DeviceKind::Cpu | DeviceKind::Numbered);
    let here = move |(name, text): &(&str, &str)| {
        let map = DeviceMap::parse(text, name).unwrap();
        map.devices.iter().all(|device| is_cpu(device.value)) && map.placed_devices().all(|(_, id)| is_cpu(id.value))
    };
    SHIPPED.iter().copied().filter(here)
}

/// A small generator of random numbers (Steele et al. 2014), so that a failure can be looked at again.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn device(&mut self, devices: usize) -> String {
        format!("\"cpu:{}\"", self.below(devices))
    }

    /// A device, or a cut at some hooks; one in three with weights that rest elsewhere.
    fn route(&mut self, devices: usize, sections: &[String]) -> String {
        let reside = ["", "", "", "", ", reside = \"host\"", ", reside = \"disk\""][self.below(6)];
        if !self.one_in(3) {
            let device = self.device(devices);
            return if reside.is_empty() { device } else { format!("{{ execute = {device}{reside} }}") };
        }
        let mut shards = format!("\"\" = {}", self.device(devices));
        for section in sections {
            if self.one_in(3) {
                shards += &format!(", \"{section}\" = {}", self.device(devices));
            }
        }
        format!("{{ shards = {{ {shards} }}{reside} }}")
    }

    fn place(&mut self, devices: usize, component: &ComponentSpec, sections: &[String]) -> String {
        // Guidance is a matter of the denoiser alone, not of ControlNets.
        if matches!(component.network, NetworkSpec::Unet(_)) && self.one_in(3) {
            let (negative, positive) = (self.route(devices, sections), self.route(devices, sections));
            return format!("{{ negative = {negative}, positive = {positive} }}");
        }
        self.route(devices, sections)
    }

    /// The `[components]` of a map, or of one of its replicas.
    fn components(&mut self, devices: usize, spec: &ModelSpec) -> String {
        let mut text = String::new();
        for (_, component) in spec.components.iter() {
            if self.one_in(4) {
                continue; // the strategy's
            }
            let sections = component.network.sections();
            let place = if self.one_in(4) && devices > 1 {
                // The same plain device twice would be refused.
                let places = ["\"cpu:0\"".to_string(), "\"cpu:1\"".to_string()];
                format!("[{}]", places.join(", "))
            } else {
                self.place(devices, component, &sections)
            };
            text += &format!("{} = {place}\n", component.name);
        }
        text
    }

    /// A map in any of the forms that are served.
    pub fn map(&mut self, spec: &ModelSpec) -> String {
        let devices = 1 + self.below(4);
        let names: Vec<String> = (0..devices).map(|i| format!("\"cpu:{i}\"")).collect();
        let mut text = format!("devices = [{}]\n", names.join(", "));
        text += ["", "strategy = \"single\"\n", "strategy = \"sequential\"\n"][self.below(3)];
        text += ["", "in_flight = 1\n", "in_flight = 3\n"][self.below(3)];
        text += ["", "batch = 2\n", "batch = 3\n"][self.below(3)];
        match self.below(4) {
            0 => text += &format!("replicas = {}\n", 1 + self.below(devices)),
            1 => {
                for _ in 0..1 + self.below(3) {
                    text += &format!("[[replica]]\n[replica.components]\n{}", self.components(devices, spec));
                }
            }
            _ => text += &format!("[components]\n{}", self.components(devices, spec)),
        }
        text
    }
}
