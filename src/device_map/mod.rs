//! The device map: a TOML file that says which devices may be used and what runs where.
//!
//! The spanned TOML tree is read by hand (`grammar.rs`), so that every message has the file, the line and the column,
//! what was found and what is possible. Entries keep their [`Location`](Location), because some mistakes are found only
//! later: `unet = "cuda:7"` is valid TOML, but wrong on a machine with one GPU.

pub mod catalogue;
mod check;
mod devices;
mod fields;
mod grammar;
mod load;
pub mod size;

use std::collections::BTreeMap;

use fields::nearest;
pub use fields::{Located, Location};
pub(crate) use grammar::read_devices;

pub use crate::{backend::cpu::Convolution, weights::Reside};
use crate::{
    backend::{DeviceId, Precision},
    weights::CONTROLNET,
};

/// The form of a guidance split, for messages.
const GUIDED_FORM: &str = "{ negative = \"cuda:0\", positive = \"cuda:1\" }";

/// The maps that are shipped with sdshard: file name and text.
pub const SHIPPED: [(&str, &str); 13] = [
    ("balanced.toml", include_str!("../../device_maps/balanced.toml")),
    ("cpu-split.toml", include_str!("../../device_maps/cpu-split.toml")),
    ("guidance-split.toml", include_str!("../../device_maps/guidance-split.toml")),
    ("low-memory.toml", include_str!("../../device_maps/low-memory.toml")),
    ("mixed-vendors.toml", include_str!("../../device_maps/mixed-vendors.toml")),
    ("pool.toml", include_str!("../../device_maps/pool.toml")),
    ("replicas.toml", include_str!("../../device_maps/replicas.toml")),
    ("replicas-max.toml", include_str!("../../device_maps/replicas-max.toml")),
    ("sdxl-8gb.toml", include_str!("../../device_maps/sdxl-8gb.toml")),
    ("sdxl-two-gpus.toml", include_str!("../../device_maps/sdxl-two-gpus.toml")),
    ("sharded-unet.toml", include_str!("../../device_maps/sharded-unet.toml")),
    ("single.toml", include_str!("../../device_maps/single.toml")),
    ("two-gpus.toml", include_str!("../../device_maps/two-gpus.toml")),
];

/// The devices that may be used, and what runs where.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceMap {
    /// The strategy, which places all components that `components` does not name.
    pub strategy: Located<Strategy>,
    /// The devices that may be used, the preferred one first. If empty, the defaults: see [`usable`](Self::usable).
    pub devices: Vec<Located<DeviceId>>,
    /// The number of replicas, each placed by the strategy.
    pub replicas: Located<Replicas>,
    /// The number of requests in flight of one replica.
    pub in_flight: Located<InFlight>,
    /// The largest number of compatible requests in one forward pass.
    pub batch: Located<usize>,
    /// Whether a component may run on devices of different numerics classes.
    pub numerics: Located<Numerics>,
    /// The algorithm of the CPU's convolutions.
    pub convolution: Located<Convolution>,
    /// The limits of devices, in bytes.
    pub max_memory: BTreeMap<DeviceId, Located<u64>>,
    /// The data type of each component's weights.
    pub dtype: DTypes,
    /// The facts about devices, which replace those that the machine reports.
    pub device: BTreeMap<DeviceId, Located<DeviceFacts>>,
    /// The places of components, by their names in the model. Several places are a pool.
    pub components: BTreeMap<String, Located<Vec<MapPlace>>>,
    /// The replicas, if each has a `[[replica]]`. Each is a whole map: a copy of this map with the entries of its
    /// `[[replica]]`, and without facts and limits of devices that the replica does not list.
    pub replica: Vec<Located<DeviceMap>>,
}

impl Default for DeviceMap {
    fn default() -> Self {
        Self {
            strategy: Located::default(),
            devices: Vec::new(),
            replicas: Located::default(),
            in_flight: Located::default(),
            batch: 1.into(),
            numerics: Located::default(),
            convolution: Located::default(),
            max_memory: BTreeMap::new(),
            dtype: DTypes::default(),
            device: BTreeMap::new(),
            components: BTreeMap::new(),
            replica: Vec::new(),
        }
    }
}

/// The place of one instance of a component in a map, with the residence of its weights. A plan has a
/// [`Place`](crate::pipeline::placement::Place) with a device for each section instead.
#[derive(Debug, Clone, PartialEq)]
pub enum MapPlace {
    /// The whole component is on one device.
    On {
        /// The device that runs it.
        device: Located<DeviceId>,
        /// The residence of the weights.
        reside: Located<Reside>,
    },
    /// The component is cut into pieces. A section runs on the device of the longest path that its name begins with.
    /// The path "" is for all other sections.
    Cut {
        /// The device of each path, such as `down_blocks.1`.
        shards: BTreeMap<String, Located<DeviceId>>,
        /// The residence of the weights of all pieces.
        reside: Located<Reside>,
    },
    /// The two branches of guidance have different places; only for a denoiser. The latents are on the device of
    /// `positive`, which is also the only branch that runs without guidance.
    Guided {
        /// The place for the negative prompt, which is not split again.
        negative: Box<MapPlace>,
        /// The place for the prompt, which is not split again.
        positive: Box<MapPlace>,
    },
}

/// The facts that a map gives about one device. If a fact is `None`, the device's own is used.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeviceFacts {
    /// The number of the wgpu adapter of this device.
    pub adapter: Option<Located<usize>>,
    /// The cores of this share of the CPU, in ascending order.
    pub cores: Option<Located<Vec<usize>>>,
    /// The bytes that are left free for other programs.
    pub reserve: Option<Located<u64>>,
    /// The total bytes of memory.
    pub memory: Option<Located<u64>>,
    /// A device of the catalogue whose rates are used for plans: see [`catalogue`](catalogue::catalogue).
    pub like: Option<Located<String>>,
    /// The floating-point operations per second of long products.
    pub flops: Option<Located<f64>>,
    /// The bytes per second between the device's memory and its cores.
    pub bandwidth: Option<Located<u64>>,
    /// The bytes per second between the device and the host.
    pub link: Option<Located<u64>>,
    /// The number of such devices, numbered from this one on; only in files of described devices, not in maps.
    pub count: Option<Located<usize>>,
}

/// The rule by which components that the map does not name are placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Balances the bytes over all devices; also called `auto`.
    #[default]
    Balanced,
    /// Like `balanced`, with as few bytes as possible on the first device.
    BalancedLow0,
    /// Fills the devices in order.
    Sequential,
    /// Places everything on the first device that holds it.
    Single,
    /// The placement that diffusers calls `balanced`. As in diffusers, `max_memory` limits the weights only.
    DiffusersBalanced,
    /// The highest number of pictures per second.
    Throughput,
    /// The shortest time for one picture.
    Latency,
}

/// The number of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replicas {
    /// This number of replicas, on as many contiguous groups of devices.
    Count(usize),
    /// As many replicas as the devices hold.
    Max,
}

impl Default for Replicas {
    fn default() -> Self {
        Self::Count(1)
    }
}

/// The number of requests in flight of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InFlight {
    /// As many as keep the replica's devices busy.
    #[default]
    Auto,
    /// This number of requests.
    Count(usize),
}

/// Which numerics classes a plan may use for one component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Numerics {
    /// Any classes: the last bits of a picture may depend on the device.
    #[default]
    Any,
    /// One class: a plan with several is rejected.
    Same,
}

/// The data type of each component's weights; `None` is `auto`, the default type of the device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DTypes {
    /// The type of every component that is not in `components`.
    pub default: Located<Option<Precision>>,
    /// The types of single components, by their names in the model.
    pub components: BTreeMap<String, Located<Option<Precision>>>,
}

impl DTypes {
    /// The type of one component; `None` is `auto`.
    pub fn of(&self, component: &str) -> &Located<Option<Precision>> {
        let entry = |name: &str| self.components.get(name);
        entry(component).or_else(|| entry(covered_by(component)?)).unwrap_or(&self.default)
    }
}

/// The component whose entry in a map counts for `component` as well if that has none: maps were written for models with
/// fewer components.
pub fn covered_by(component: &str) -> Option<&'static str> {
    match component {
        "text_encoder_2" => Some("text_encoder"),
        "vae_encoder" => Some("vae"),
        name if name.starts_with(CONTROLNET) => Some("unet"),
        _ => None,
    }
}

impl Strategy {
    /// The strategies with their names in a map.
    const NAMED: [(&str, Self); 8] = [
        ("balanced", Self::Balanced),
        ("auto", Self::Balanced),
        ("balanced_low_0", Self::BalancedLow0),
        ("sequential", Self::Sequential),
        ("single", Self::Single),
        ("diffusers-balanced", Self::DiffusersBalanced),
        ("throughput", Self::Throughput),
        ("latency", Self::Latency),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(n, _)| *n == name).map(|(_, strategy)| *strategy)
    }

    /// The name in a map.
    pub fn name(self) -> &'static str {
        Self::NAMED.iter().find(|(_, strategy)| *strategy == self).map_or("", |(name, _)| name)
    }

    /// A list of the strategies, with a suggestion for `word`.
    fn possible(word: &str) -> String {
        let names = Self::NAMED.map(|(name, _)| name);
        let possible = "a strategy is \"balanced\" (the same as \"auto\"), \"balanced_low_0\", \"sequential\", \
                        \"single\", \"diffusers-balanced\", \"throughput\" or \"latency\"";
        with_nearest(possible, word, &names)
    }
}

impl From<DeviceId> for MapPlace {
    fn from(device: DeviceId) -> Self {
        Self::On { device: device.into(), reside: Reside::Device.into() }
    }
}

impl From<DeviceId> for Located<Vec<MapPlace>> {
    fn from(device: DeviceId) -> Self {
        vec![MapPlace::from(device)].into()
    }
}

impl MapPlace {
    /// The devices of this place, as often as they are named; in a guided place, the negative branch comes first.
    pub fn devices(&self) -> Vec<&Located<DeviceId>> {
        match self {
            MapPlace::On { device, .. } => vec![device],
            MapPlace::Cut { shards, .. } => shards.values().collect(),
            MapPlace::Guided { negative, positive } => [negative.devices(), positive.devices()].concat(),
        }
    }

    fn devices_mut(&mut self) -> Vec<&mut Located<DeviceId>> {
        match self {
            MapPlace::On { device, .. } => vec![device],
            MapPlace::Cut { shards, .. } => shards.values_mut().collect(),
            MapPlace::Guided { negative, positive } => {
                negative.devices_mut().into_iter().chain(positive.devices_mut()).collect()
            }
        }
    }

    /// The device, if the whole component runs on one and its weights stay there.
    pub fn single(&self) -> Option<&Located<DeviceId>> {
        match self {
            MapPlace::On { device, reside: Located { value: Reside::Device, .. } } => Some(device),
            _ => None,
        }
    }

    /// The device of the section `part`: that of the longest path that the name begins with. `None` in a guided place,
    /// which has every section twice, and in a cut without the path "" for sections that no path names.
    pub fn device_at(&self, part: &str) -> Option<&Located<DeviceId>> {
        match self {
            MapPlace::On { device, .. } => Some(device),
            MapPlace::Cut { shards, .. } => {
                let names = shards.iter().filter(|(path, _)| starts_with(part, path));
                names.max_by_key(|(path, _)| path.len()).map(|(_, device)| device)
            }
            MapPlace::Guided { .. } => None,
        }
    }

    /// The residence of the weights: one value, or one for each branch of guidance.
    pub fn resides(&self) -> Vec<&Located<Reside>> {
        match self {
            MapPlace::On { reside, .. } | MapPlace::Cut { reside, .. } => vec![reside],
            MapPlace::Guided { negative, positive } => [negative.resides(), positive.resides()].concat(),
        }
    }

    /// The cuts of this place: its own, or those of the branches of guidance.
    fn cuts(&self) -> Vec<&BTreeMap<String, Located<DeviceId>>> {
        match self {
            MapPlace::On { .. } => Vec::new(),
            MapPlace::Cut { shards, .. } => vec![shards],
            MapPlace::Guided { negative, positive } => [negative.cuts(), positive.cuts()].concat(),
        }
    }
}

/// Whether `name` begins with `path` in whole steps: `a.b` begins `a.b.c`, but not `a.bc`.
fn starts_with(name: &str, path: &str) -> bool {
    path.is_empty() || name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

impl DeviceMap {
    /// A map that has only a strategy.
    pub fn from_strategy(strategy: Strategy) -> Self {
        Self { strategy: strategy.into(), ..Self::default() }
    }

    /// The maps of the replicas: those of `[[replica]]`, or this map if there are none.
    pub fn replica_maps(&self) -> Vec<&Self> {
        match self.replica.is_empty() {
            true => vec![self],
            false => self.replica.iter().map(|replica| &replica.value).collect(),
        }
    }

    /// This map and those of its replicas, each with the prefix of its keys in messages.
    pub(crate) fn all_maps(&self) -> impl Iterator<Item = (String, &Self)> {
        let replicas = self.replica.iter().enumerate();
        let replicas = replicas.map(|(index, replica)| (format!("replica[{index}]."), &replica.value));
        std::iter::once((String::new(), self)).chain(replicas)
    }

    /// The places that this map gives to a component: those of its own entry, or those of the component that
    /// [covers](covered_by) it, each as a whole on the place's first device: the borders of a cut are another network's.
    pub fn places_of(&self, component: &str) -> Option<Located<Vec<MapPlace>>> {
        let whole = |place: &MapPlace| {
            let device = (*place.devices().first().expect("a place has a device")).clone();
            let reside = place.resides().first().map_or_else(Located::default, |reside| (*reside).clone());
            MapPlace::On { device, reside }
        };
        let covering = || self.components.get(covered_by(component)?);
        let whole_places = |pool: &Located<Vec<MapPlace>>| {
            let places = pool.value.iter().map(whole).collect();
            Located { value: places, ..pool.clone() }
        };
        self.components.get(component).cloned().or_else(|| covering().map(whole_places))
    }

    /// Every device of a component's place, with the component's key for messages about values that were made in code.
    /// Places of `[[replica]]` are not included: see [`replica_maps`](Self::replica_maps).
    pub fn placed_devices(&self) -> impl Iterator<Item = (String, &Located<DeviceId>)> {
        self.components.iter().flat_map(|(name, pool)| {
            let devices = pool.value.iter().flat_map(MapPlace::devices);
            devices.map(move |device| (format!("components.{name}"), device))
        })
    }
}

/// `possible` with a suggestion from `names` for `word`.
fn with_nearest(possible: &str, word: &str, names: &[&str]) -> String {
    match nearest(word, names) {
        Some(near) => format!("{possible}; did you mean \"{near}\"?"),
        None => possible.to_string(),
    }
}
