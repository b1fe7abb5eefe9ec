//! The rules that hold for a device map on every machine: single values, devices, replicas, cuts. Names of keys and
//! forms of values are checked by `grammar.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::{
    DeviceFacts, DeviceMap, GUIDED_FORM, InFlight, MapPlace, Replicas, Strategy, catalogue, fields::Located,
    starts_with, with_nearest,
};
use crate::{
    backend::{DeviceId, DeviceKind},
    error::{Error, Result},
    models::spec::{ComponentSpec, ModelSpec},
};

/// The largest number of requests in flight of a replica: each has a thread.
const MAX_IN_FLIGHT: usize = 1024;

/// The largest batch of the UNet: the planner makes a dry run for each batch size up to it.
const MAX_BATCH: usize = 64;

/// The operations per second that a device can have; other values are mistakes.
const PLAUSIBLE_FLOPS: Range<f64> = 1e6..1e21;

impl DeviceMap {
    /// Checks the rules that hold for any model on any machine. `parse` does this; a map that is made in code needs it.
    ///
    /// # Errors
    /// At the first entry that breaks a rule.
    pub fn check(&self) -> Result<()> {
        self.check_values("")?;
        self.check_cpu()?;
        self.check_replicas()?;
        if self.replica.is_empty() {
            return self.check_listed("");
        }
        for (prefix, map) in self.all_maps().skip(1) {
            map.check_values(&prefix)?;
            map.check_listed(&prefix)?;
        }
        let maps = self.replica_maps();
        // A fact or limit at the top level must apply to a replica.
        for (key, device) in self.limited_devices() {
            let id = &device.value;
            if !maps.iter().any(|map| map.max_memory.contains_key(id) || map.device.contains_key(id)) {
                let listed: BTreeSet<_> = maps.iter().flat_map(|map| &map.devices).map(|d| d.value).collect();
                return Err(refuse_unlisted(&device, &key, listed));
            }
        }
        Ok(())
    }

    /// Checks counts from 1, that no device is twice in `devices`, facts that suit their device, and valid places.
    fn check_values(&self, prefix: &str) -> Result<()> {
        let key = |name: &str| format!("{prefix}{name}");
        if let InFlight::Count(count) = self.in_flight.value
            && let Some(problem) = count_problem(count, MAX_IN_FLIGHT)
        {
            let refused = self.in_flight.refuse(&key("in_flight"), problem);
            return Err(refused.hint(format!("\"auto\", or a whole number from 1 to {MAX_IN_FLIGHT}")));
        }
        if let Some(problem) = count_problem(self.batch.value, MAX_BATCH) {
            let refused = self.batch.refuse(&key("batch"), problem);
            return Err(refused.hint(format!("a whole number from 1 to {MAX_BATCH}")));
        }
        let mut seen = BTreeSet::new();
        for device in &self.devices {
            if !seen.insert(device.value) {
                return Err(device
                    .refuse(&key("devices"), format!("{} is named twice", device.value))
                    .hint("name each device once; two shares of the cores are \"cpu:0\" and \"cpu:1\""));
            }
        }
        for (id, facts) in &self.device {
            facts.value.check(*id)?;
            if let Some(count) = &facts.value.count {
                return Err(count
                    .refuse(&format!("device.{id}.count"), "a map says something of one device at a time")
                    .hint("leave out `count`; files for `sdshard plan --devices` have it"));
            }
        }
        for (name, pool) in &self.components {
            let key = key(&format!("components.{name}"));
            if self.strategy.value == Strategy::DiffusersBalanced {
                return Err(pool
                    .refuse(&key, "strategy \"diffusers-balanced\" places every component itself, as diffusers does")
                    .hint("leave out [components], or take strategy = \"balanced\""));
            }
            check_pool(name, &key, pool)?;
        }
        Ok(())
    }

    /// Checks that the map does not use both `cpu` and `cpu:N`.
    fn check_cpu(&self) -> Result<()> {
        let mut named: Vec<(String, Located<DeviceId>)> = Vec::new();
        for (prefix, map) in self.all_maps() {
            let listed = map.devices.iter().map(|device| ("devices".to_string(), device.clone()));
            let placed = map.placed_devices().map(|(key, device)| (key, device.clone()));
            let here = listed.chain(placed).chain(map.limited_devices());
            named.extend(here.map(|(key, device)| (prefix.clone() + &key, device)));
        }
        // If an entry conflicts with any earlier one, it also conflicts with the first one.
        let mut first: Option<DeviceId> = None;
        for (key, device) in named.iter().filter(|(_, device)| device.value.kind == DeviceKind::Cpu) {
            let other = *first.get_or_insert(device.value);
            if mixes_cpu(other, device.value) {
                return Err(device
                    .refuse(key, "`cpu` is all cores and `cpu:N` a share of them: a map has one or the other")
                    .found(format!("{} beside {other}", device.value))
                    .hint("\"cpu\" everywhere, or \"cpu:0\", \"cpu:1\" and so on"));
            }
        }
        Ok(())
    }

    /// Checks that the map uses no device outside `devices`, if it has this key.
    fn check_listed(&self, prefix: &str) -> Result<()> {
        let listed = || self.devices.iter().map(|device| device.value);
        let placed = self.placed_devices().map(|(key, device)| (key, device.clone()));
        let outside = placed
            .chain(self.limited_devices())
            .find(|(_, device)| !self.devices.is_empty() && !listed().any(|id| id == device.value));
        match outside {
            Some((key, device)) => Err(refuse_unlisted(&device, &format!("{prefix}{key}"), listed())),
            None => Ok(()),
        }
    }

    /// The devices that have a limit or facts, each with its key. Such an entry does not make the map use the device.
    pub(super) fn limited_devices(&self) -> impl Iterator<Item = (String, Located<DeviceId>)> {
        let limits = self.max_memory.iter().map(|(&id, limit)| ("max_memory", id, &limit.location));
        let facts = self.device.iter().map(|(&id, facts)| ("device", id, &facts.location));
        limits
            .chain(facts)
            .map(|(table, id, location)| (format!("{table}.{id}"), Located { value: id, location: location.clone() }))
    }

    /// Checks the number of replicas: at least one, at most one for each device, only one if components are named, and
    /// not given both as `replicas` and as `[[replica]]`.
    fn check_replicas(&self) -> Result<()> {
        if self.replicas.value == Replicas::Count(0) {
            return Err(self.replicas.refuse("replicas", "there has to be at least one").hint("replicas = 1"));
        }
        if !self.replica.is_empty() {
            if self.replicas != Located::default() {
                return Err(self
                    .replicas
                    .refuse("replicas", "the replicas are written out one by one, which says how many there are")
                    .found(format!("{} of [[replica]]", self.replica.len()))
                    .hint("leave out `replicas`, or every [[replica]]"));
            }
            return Ok(());
        }
        if !self.devices.is_empty() {
            self.check_enough_devices(self.devices.len())?;
        }
        match (self.replicas.value, self.components.first_key_value()) {
            (Replicas::Count(1), _) | (_, None) => Ok(()),
            (_, Some((name, _))) => Err(self
                .replicas
                .refuse("replicas", "several replicas cannot share a component that has a device of its own")
                .found(format!("components.{name}"))
                .hint(
                    "leave out [components], and each replica spreads its own over its devices; or replicas = 1; or \
                     write each out as [[replica]]",
                )),
        }
    }

    pub(super) fn check_enough_devices(&self, devices: usize) -> Result<()> {
        match self.replicas.value {
            Replicas::Count(count) if count > devices => Err(self
                .replicas
                .refuse("replicas", "every replica needs a device of its own")
                .found(format!("{count} replicas, {devices} device{}", if devices == 1 { "" } else { "s" }))
                .hint(format!("replicas = {devices}, or \"max\", or more `devices`"))),
            _ => Ok(()),
        }
    }

    /// Checks the rules that hold for a model: its components exist, only the denoiser has a guidance split, and every
    /// cut is at the borders of sections.
    ///
    /// # Errors
    /// At the first entry that breaks a rule.
    pub fn check_model(&self, spec: &ModelSpec) -> Result<()> {
        let names = spec.names();
        let unknown_component = |error: Error, name: &str| {
            error.hint(with_nearest(&format!("the components are {}", names.join(", ")), name, &names))
        };
        for (_, map) in self.all_maps() {
            if let Some((name, dtype)) = map.dtype.components.iter().find(|(name, _)| spec.component(name).is_none()) {
                return Err(unknown_component(dtype.refuse(&format!("dtype.{name}"), "no such component"), name));
            }
            for (name, pool) in &map.components {
                let key = format!("components.{name}");
                let Some(component) = spec.component(name) else {
                    return Err(unknown_component(pool.refuse(&key, "no such component"), name));
                };
                let guided = pool.value.iter().find(|place| matches!(place, MapPlace::Guided { .. }));
                if let (Some(place), true) = (guided, component != spec.denoiser()) {
                    let denoiser = &spec.components[spec.denoiser()].name;
                    let problem = format!("guidance is a matter of the {denoiser} alone");
                    return Err(refuse_guided(name, &key, pool, place, problem));
                }
            }
        }
        let check = |component: &ComponentSpec| self.check_borders(&component.name, &component.network.sections());
        spec.components.iter().try_for_each(|(_, component)| check(component))
    }

    /// Checks that every cut of `component` is possible. `borders` are the names of the model's sections. Each path of
    /// a cut must be "" or the beginning of such a name in whole steps, and each section must have a device.
    ///
    /// # Errors
    /// At the first path that is not possible, or if a section has no device.
    pub fn check_borders(&self, component: &str, borders: &[String]) -> Result<()> {
        let key = format!("components.{component}");
        for (_, map) in self.all_maps() {
            let Some(pool) = map.components.get(component) else { continue };
            for shards in pool.value.iter().flat_map(MapPlace::cuts) {
                check_shards(&key, pool, shards, borders)?;
            }
        }
        Ok(())
    }
}

/// Checks one cut against the model's sections.
fn check_shards(
    key: &str,
    pool: &Located<Vec<MapPlace>>,
    shards: &BTreeMap<String, Located<DeviceId>>,
    borders: &[String],
) -> Result<()> {
    let all = || format!("it can be cut at {}", borders.join(", "));
    for (path, device) in shards {
        if borders.iter().any(|border| starts_with(border, path)) {
            continue;
        }
        let key = format!("{key}.shards.{path:?}");
        if let Some(border) = borders.iter().find(|border| starts_with(path, border)) {
            return Err(device
                .refuse(&key, "finer than a border: this part stays in one piece")
                .found(format!("{path:?}"))
                .hint(format!("{border:?}; {}", all())));
        }
        let names: Vec<&str> = borders.iter().map(String::as_str).collect();
        let refused = device.refuse(&key, "the model has no such part").found(format!("{path:?}"));
        return Err(refused.hint(with_nearest(&all(), path, &names)));
    }
    let without_device: Vec<_> =
        borders.iter().filter(|border| !shards.keys().any(|path| starts_with(border, path))).cloned().collect();
    if without_device.is_empty() {
        return Ok(());
    }
    // The first shard shows which cut of a pool is wrong.
    let refused = match shards.values().next() {
        Some(device) => device.refuse(key, "no device for a part that no path of this cut names"),
        None => pool.refuse(key, "no device for any part"),
    };
    Err(refused.found(without_device.join(", ")).hint("the path \"\" is the rest: shards = { \"\" = \"cuda:0\", … }"))
}

/// Checks one component's places: at least one, no device twice, and each of a valid form.
fn check_pool(component: &str, key: &str, pool: &Located<Vec<MapPlace>>) -> Result<()> {
    if pool.value.is_empty() {
        let refused = pool.refuse(key, "a pool needs at least one place").found("an empty array");
        return Err(refused.hint(format!("{component} = [\"cuda:0\", \"cuda:1\"] is an instance on each")));
    }
    let mut seen = BTreeSet::new();
    for place in &pool.value {
        if let MapPlace::On { device, .. } = place
            && !seen.insert(device.value)
        {
            return Err(device
                .refuse(key, format!("{} is twice in one pool, which has an instance on each place", device.value))
                .hint("name each device once; `in_flight` says how many requests are worked on at once"));
        }
        check_place(component, key, pool, place, true)?;
    }
    Ok(())
}

fn check_place(
    component: &str,
    key: &str,
    pool: &Located<Vec<MapPlace>>,
    place: &MapPlace,
    may_be_guided: bool,
) -> Result<()> {
    match place {
        MapPlace::On { .. } => Ok(()),
        MapPlace::Cut { shards, .. } if shards.is_empty() => Err(pool
            .refuse(key, "a cut needs at least one path")
            .found("no shards")
            .hint("shards = { \"\" = \"cuda:1\", \"down_blocks\" = \"cuda:0\" }; \"\" is the rest")),
        MapPlace::Cut { shards, .. } => {
            let is_step = |step: &str| !step.is_empty() && step.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            for (path, device) in shards {
                let inside = path.strip_prefix(component).and_then(|rest| rest.strip_prefix('.'));
                if path.is_empty() || (path.split('.').all(is_step) && path != component && inside.is_none()) {
                    continue;
                }
                let form = "a path is names and numbers with dots between, \"down_blocks.1\", or \"\" for the rest";
                return Err(device
                    .refuse(&format!("{key}.shards.{path:?}"), "not the path of a part")
                    .found(format!("{path:?}"))
                    .hint(match inside {
                        Some(inside) => format!("did you mean {inside:?}? paths begin inside the {component}; {form}"),
                        None => form.to_string(),
                    }));
            }
            Ok(())
        }
        MapPlace::Guided { negative, positive } => {
            if may_be_guided {
                check_place(component, key, pool, negative, false)?;
                return check_place(component, key, pool, positive, false);
            }
            Err(refuse_guided(component, key, pool, place, "a branch of guidance is not guided again".to_string()))
        }
    }
}

/// The error for a guidance split in a place that must not have one.
fn refuse_guided(
    component: &str,
    key: &str,
    pool: &Located<Vec<MapPlace>>,
    place: &MapPlace,
    problem: String,
) -> Error {
    let refused = match place.devices().first() {
        Some(device) => device.refuse(key, problem),
        None => pool.refuse(key, problem),
    };
    refused
        .found("`negative` and `positive`")
        .hint(format!("one place here: {component} = \"cuda:0\"; guidance apart is {GUIDED_FORM}, for a denoiser"))
}

impl DeviceFacts {
    /// Checks that a device of this kind can have these facts.
    pub(super) fn check(&self, id: DeviceId) -> Result<()> {
        let key = |name: &str| format!("device.{id}.{name}");
        if let Some(like) = &self.like {
            catalogue::find(like, &key("like"))?;
        }
        match &self.adapter {
            Some(adapter) if id.kind != DeviceKind::Wgpu => {
                return Err(adapter
                    .refuse(&key("adapter"), format!("{id} has no adapter, only wgpu:N has"))
                    .hint("[device.\"wgpu:0\"]; CUDA_VISIBLE_DEVICES renumbers cuda:N"));
            }
            _ => {}
        }
        match &self.cores {
            Some(cores) if id.kind != DeviceKind::Cpu => {
                return Err(cores
                    .refuse(&key("cores"), format!("{id} has no cores to choose from, only cpu:N has"))
                    .hint("[device.\"cpu:0\"]"));
            }
            Some(cores) if cores.value.is_empty() => {
                return Err(cores.refuse(&key("cores"), "there has to be at least one core").hint("cores = \"0-15\""));
            }
            _ => {}
        }
        if let Some(flops) = self.flops.as_ref().filter(|flops| !PLAUSIBLE_FLOPS.contains(&flops.value)) {
            return Err(flops.refuse(&key("flops"), "no device has so many operations per second").hint(format!(
                "from {:e} to {:e}; flops = 82.6e12 is 82.6 TFLOP/s",
                PLAUSIBLE_FLOPS.start, PLAUSIBLE_FLOPS.end
            )));
        }
        match &self.count {
            Some(count) if count.value == 0 => {
                Err(count.refuse(&key("count"), "there has to be at least one").hint("a whole number from 1"))
            }
            _ => Ok(()),
        }
    }
}

/// The problem with a number of requests, if there is one.
fn count_problem(count: usize, max: usize) -> Option<String> {
    match count {
        0 => Some("there has to be at least one request".to_string()),
        _ if count > max => Some(format!("at most {max} requests")),
        _ => None,
    }
}

/// Whether one device is the whole CPU and the other a share of it.
pub(super) fn mixes_cpu(a: DeviceId, b: DeviceId) -> bool {
    a.kind == DeviceKind::Cpu && b.kind == DeviceKind::Cpu && a.index.is_some() != b.index.is_some()
}

pub(super) fn refuse_unlisted(
    device: &Located<DeviceId>,
    key: &str,
    devices: impl IntoIterator<Item = DeviceId>,
) -> Error {
    let devices: Vec<_> = devices.into_iter().map(|device| format!("\"{device}\"")).collect();
    device
        .refuse(key, format!("{} is not among the devices that may be used", device.value))
        .found(format!("devices = [{}]", devices.join(", ")))
        .hint(format!("add \"{}\" to `devices`, or name one of those", device.value))
}
