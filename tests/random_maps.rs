//! Two hundred random device maps, of every form that is served: each draws the pictures of a single device to the bit,
//! keeps to the bytes of its plan, and comes to an end.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use sdshard::{
    backend,
    engine::Engine,
    models::spec::ModelSpec,
    pipeline::{Component, Model, Picture, model::sections, request::Request},
    planner::{Largest, device_map::DeviceMap, plan::Plan},
    weights::ModelFiles,
};

const MAPS: u64 = 200;
/// More than any of these takes on a slow machine; whoever needs longer waits for itself.
const DEADLINE: Duration = Duration::from_secs(120);

/// A small generator of random numbers (Steele et al. 2014), so that a failure can be looked at again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn device(&mut self, devices: usize) -> String {
        format!("\"cpu:{}\"", self.below(devices))
    }

    /// A device, or a cut at some borders; one in three with weights that rest elsewhere.
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

    fn place(&mut self, devices: usize, component: Component, sections: &[String]) -> String {
        if component == Component::Unet && self.one_in(3) {
            let (negative, positive) = (self.route(devices, sections), self.route(devices, sections));
            return format!("{{ negative = {negative}, positive = {positive} }}");
        }
        self.route(devices, sections)
    }

    /// The `[components]` of a map, or of one of its replicas.
    fn components(&mut self, devices: usize, spec: &ModelSpec) -> String {
        let mut text = String::new();
        for component in Component::ALL {
            if self.one_in(4) {
                continue; // the strategy's
            }
            let sections = sections(component, spec);
            let place = if self.one_in(4) && devices > 1 {
                // The same plain device twice would be refused.
                let places = ["\"cpu:0\"".to_string(), "\"cpu:1\"".to_string()];
                format!("[{}]", places.join(", "))
            } else {
                self.place(devices, component, &sections)
            };
            text += &format!("{} = {place}\n", component.name());
        }
        text
    }

    fn map(&mut self, spec: &ModelSpec) -> String {
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

fn requests(spec: &ModelSpec) -> Vec<Request> {
    let mut requests = Vec::new();
    for (i, (prompt, guidance_scale)) in [("a fox", 5.0), ("an owl", 1.0), ("a fox", 3.0)].into_iter().enumerate() {
        let request = Request::new(prompt, spec);
        requests.push(Request { seed: i as u64, steps: 2, width: 40, height: 24, guidance_scale, ..request });
    }
    requests
}

/// Draws with a map, and compares the arenas with the plan.
fn draw(model: &Arc<Model>, text: &str) -> Vec<Picture> {
    let requests = requests(&model.spec);
    let map = DeviceMap::parse(text, "map.toml").unwrap_or_else(|e| panic!("{e}\n{text}"));
    let largest = Largest::of(&requests, &model.spec).unwrap().unwrap();
    let plan =
        Plan::resolve(&map, &model.spec, &largest, &backend::visible()).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let engine = Engine::load(model.clone(), &plan).unwrap();
    let tickets: Vec<_> = requests.into_iter().map(|request| engine.submit(request).unwrap()).collect();
    let pictures = tickets.into_iter().map(|ticket| ticket.wait().unwrap()).collect();
    // Who comes first to which replica, place and batch is not known.
    let one = |(_, places): (_, &Vec<_>)| places.len() == 1;
    let surely_all = matches!(plan.replicas.as_slice(), [only] if only.batch == 1 && only.placement.iter().all(one));
    for (planned, (id, peak)) in plan.devices.iter().zip(engine.peak_bytes()) {
        assert_eq!(planned.id, id);
        let planned = planned.activation_bytes as usize;
        assert!(peak <= planned, "{id} used {peak} bytes of {planned} planned\n{text}");
        assert!(peak == planned || !surely_all, "{id} used {peak} bytes, {planned} were planned\n{text}");
    }
    for (planned, (id, peak)) in plan.devices.iter().zip(engine.peak_weight_bytes()) {
        let planned = (planned.weight_bytes + planned.visitor_bytes) as usize;
        assert!(peak <= planned, "{id} had {peak} bytes of weights, {planned} were planned\n{text}");
    }
    pictures
}

#[test]
fn every_map_draws_the_same_pictures_in_its_planned_bytes() {
    let folder = format!("{}/tests/golden/tiny-sd1", env!("CARGO_MANIFEST_DIR"));
    let model = Arc::new(Model::open(ModelFiles::folder(folder).unwrap(), None).unwrap());
    let want = draw(&model, "strategy = \"single\"");
    assert!(want[0].image != want[1].image && want[0].image != want[2].image);

    let mut forms = [0; 8];
    for seed in 0..MAPS {
        let text = Random(seed).map(&model.spec);
        for (form, count) in
            ["shards", "negative", "[[replica]]", "in_flight = 3", "[\"cpu:0\", \"cpu:1\"]\n", "host", "disk", "batch"]
                .iter()
                .zip(&mut forms)
        {
            *count += usize::from(text.contains(form));
        }
        let (done, result) = mpsc::channel();
        let (model, map) = (model.clone(), text.clone());
        let worker = std::thread::spawn(move || done.send(draw(&model, &map)));
        match result.recv_timeout(DEADLINE) {
            Ok(got) => {
                for (got, want) in got.iter().zip(&want) {
                    assert!(
                        got.image == want.image && got.latents == want.latents,
                        "seed {seed}: another picture\n{text}"
                    );
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("seed {seed}: this map does not come to an end\n{text}"),
            // It panicked, and has said why.
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                panic!("seed {seed}: {:?}", worker.join().err().map(|_| "failed"))
            }
        }
    }
    assert!(forms.iter().all(|count| *count >= 20), "every form is tried often: {forms:?}");
}
