//! The device map: a TOML file that says where each component may live.
//!
//! The file is read from the spanned TOML tree by hand, so that every message has the file, the line and the column,
//! what was found and what is possible. Whatever names a device or a limit keeps its [`Location`](super::Location),
//! because some slips show only later: `unet = "cuda:7"` is good TOML on a machine with one GPU.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
};

use super::{
    fields::{Field, Located, Source, nearest},
    size::parse_size,
};
use crate::{
    backend::{DType, DeviceId, DeviceKind},
    error::{Error, Result},
    pipeline::Component,
};

/// The components that a map can place, in the order in which a picture passes through them.
pub const COMPONENTS: [&str; 3] = [Component::TextEncoder.name(), Component::Unet.name(), Component::Vae.name()];

/// The maps that come with sdshard: file name and text.
pub const SHIPPED: [(&str, &str); 4] = [
    ("balanced.toml", include_str!("../../device_maps/balanced.toml")),
    ("cpu-split.toml", include_str!("../../device_maps/cpu-split.toml")),
    ("replicas.toml", include_str!("../../device_maps/replicas.toml")),
    ("single.toml", include_str!("../../device_maps/single.toml")),
];

/// The keys that stand before the first `[table]`, and the tables.
const TOP_LEVEL: [&str; 9] =
    ["strategy", "devices", "replicas", "in_flight", "batch", "dtype", "numerics", "max_memory", "components"];

/// Where the components may live, and how.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeviceMap {
    /// Places whatever `components` does not name.
    pub strategy: Strategy,
    /// The devices that may be used, the preferred one first. Empty: the machine's defaults, see [`usable`](Self::usable).
    pub devices: Vec<Located<DeviceId>>,
    /// Whole pipelines side by side.
    pub replicas: Located<Replicas>,
    /// The most bytes that may be used on a device.
    pub max_memory: BTreeMap<DeviceId, Located<u64>>,
    /// The type of each component's weights.
    pub dtype: DTypes,
    /// Components with a device of their own; names from [`COMPONENTS`].
    pub components: BTreeMap<String, Located<DeviceId>>,
}

/// How components without a named device are placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Evens out the bytes on all devices; also called `auto`.
    #[default]
    Balanced,
    /// Everything on the first device that holds it.
    Single,
}

/// How many whole pipelines stand side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replicas {
    /// So many: the devices are dealt into that many contiguous groups.
    Count(usize),
    /// As many as the devices hold.
    Max,
}

impl Default for Replicas {
    fn default() -> Self {
        Self::Count(1)
    }
}

/// The weight type of each component; `None` is `auto`: what suits the device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DTypes {
    /// For every component that is not named below.
    pub default: Option<DType>,
    /// For single components; names from [`COMPONENTS`].
    pub components: BTreeMap<String, Option<DType>>,
}

impl DTypes {
    /// The type asked for one component.
    pub fn of(&self, component: &str) -> Option<DType> {
        self.components.get(component).copied().unwrap_or(self.default)
    }
}

impl DeviceMap {
    /// A map that is nothing but a strategy.
    pub fn from_strategy(strategy: Strategy) -> Self {
        Self { strategy, ..Self::default() }
    }

    /// What `--device-map` takes: a path (it contains `/` or ends in `.toml`), the name of a shipped map that is not a
    /// file here, or a strategy's name.
    pub fn load(name: &str) -> Result<Self> {
        if !name.contains('/') && !name.ends_with(".toml") {
            return Strategy::named(name).map(Self::from_strategy).ok_or_else(|| {
                Error::input(format!("--device-map {name}: this is neither a file nor a strategy")).hint(format!(
                    "{}; the path of a file contains a / or ends in .toml",
                    with_nearest(Strategy::POSSIBLE, name, &Strategy::NAMES)
                ))
            });
        }
        match (std::fs::read_to_string(name), SHIPPED.iter().find(|(shipped, _)| *shipped == name)) {
            (Ok(text), _) => Self::parse(&text, name),
            (Err(error), Some((_, text))) if error.kind() == ErrorKind::NotFound => Self::parse(text, name),
            (Err(error), _) => {
                let shipped = SHIPPED.map(|(shipped, _)| shipped).join(", ");
                Err(Error::input(format!("reading the device map {name}"))
                    .source(error)
                    .hint(format!("a file, a map that comes with sdshard ({shipped}), or {}", Strategy::POSSIBLE)))
            }
        }
    }

    /// Reads a map; `file` is what messages call it. Checks everything that can be checked without knowing the machine.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let source = Source { file, text };
        let root = source.parse(syntax_hint)?;
        let mut map = Self::default();
        for field in source.fields(root.get_ref()) {
            match field.name {
                "strategy" => map.strategy = field.strategy()?,
                "devices" => map.devices = field.devices()?,
                "replicas" => map.replicas = field.replicas()?,
                "in_flight" => field.only("1 or \"auto\"", |f| f.count() == Some(1) || f.str() == Some("auto"))?,
                "batch" => field.only("1", |f| f.count() == Some(1))?,
                "numerics" => field.only("\"any\"", |f| f.str() == Some("any"))?,
                "dtype" => map.dtype = field.dtypes()?,
                "max_memory" => {
                    for limit in field.entries("a device and a size on each line: \"cuda:0\" = \"6GiB\"")? {
                        map.max_memory.insert(limit.device_name()?, limit.size()?);
                    }
                }
                "components" => {
                    for component in field.entries("a component and a device on each line: unet = \"cuda:0\"")? {
                        map.components.insert(component.component_name()?, component.device()?);
                    }
                }
                "device" => {
                    return Err(field.refuse_name("facts about a device cannot be given so far").hint(
                        "`sdshard devices` shows what sdshard finds by itself; [max_memory] limits what it uses",
                    ));
                }
                "replica" => {
                    return Err(field
                        .refuse_name("replicas cannot be written out one by one so far")
                        .hint("replicas = 2 deals the `devices` into two groups of neighbours"));
                }
                name => {
                    let keys = format!("the keys of a device map are {}", TOP_LEVEL.join(", "));
                    return Err(field.refuse_name("no such key").hint(with_nearest(&keys, name, &TOP_LEVEL)));
                }
            }
        }
        map.check()?;
        Ok(map)
    }

    /// What must hold in a map on any machine. `parse` has called it; a map made in code needs it.
    pub fn check(&self) -> Result<()> {
        self.check_devices()?;
        self.check_replicas()?;
        for (name, place) in &self.components {
            if !COMPONENTS.contains(&name.as_str()) {
                return Err(place
                    .refuse(&format!("components.{name}"), "no such component")
                    .hint(COMPONENTS.join(", ")));
            }
        }
        Ok(())
    }

    /// No device twice, none outside `devices`, and not both `cpu` and `cpu:N`.
    fn check_devices(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        for device in &self.devices {
            if let Some(other) = seen.iter().copied().find(|other| mixes_cpu(*other, device.value)) {
                return Err(refuse_mixed_cpu(device, "devices", other));
            }
            if !seen.insert(device.value) {
                return Err(device
                    .refuse("devices", format!("{} is named twice", device.value))
                    .hint("name each device once; two shares of the cores are \"cpu:0\" and \"cpu:1\""));
            }
        }
        let places = self.components.iter().map(|(name, place)| (format!("components.{name}"), place.clone()));
        for (key, device) in places.chain(self.limited_devices()) {
            if let Some(other) = seen.iter().copied().find(|other| mixes_cpu(*other, device.value)) {
                return Err(refuse_mixed_cpu(&device, &key, other));
            }
            if !self.devices.is_empty() && !seen.contains(&device.value) {
                return Err(refuse_unlisted(&device, &key, seen));
            }
            seen.insert(device.value);
        }
        Ok(())
    }

    /// The devices with a limit, each with its key.
    fn limited_devices(&self) -> impl Iterator<Item = (String, Located<DeviceId>)> {
        self.max_memory.iter().map(|(&device, limit)| {
            (format!("max_memory.{device}"), Located { value: device, location: limit.location.clone() })
        })
    }

    /// At least one replica, no more than devices, and no named components beside several.
    fn check_replicas(&self) -> Result<()> {
        if self.replicas.value == Replicas::Count(0) {
            return Err(self.replicas.refuse("replicas", "there has to be at least one").hint("replicas = 1"));
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
                .hint("leave out [components], and each replica spreads its own over its devices; or replicas = 1")),
        }
    }

    fn check_enough_devices(&self, devices: usize) -> Result<()> {
        match self.replicas.value {
            Replicas::Count(count) if count > devices => Err(self
                .replicas
                .refuse("replicas", "every replica needs a device of its own")
                .found(format!("{count} replicas, {devices} devices"))
                .hint(format!("replicas = {devices}, or \"max\", or more `devices`"))),
            _ => Ok(()),
        }
    }

    /// The devices that this map may use on a machine whose default devices are `defaults`, the preferred one first.
    ///
    /// Without `devices` these are the defaults and those that components name besides. A map that names shares of the
    /// CPU (`cpu:0`) does not use the whole `cpu` as well. Fails if there are more replicas than devices, or a limit on
    /// a device that is not used: a limit alone does not ask for a device.
    pub fn usable(&self, defaults: &[DeviceId]) -> Result<Vec<DeviceId>> {
        let mut usable: Vec<DeviceId> = self.devices.iter().map(|d| d.value).collect();
        if usable.is_empty() {
            let named: BTreeSet<DeviceId> = self.components.values().map(|place| place.value).collect();
            usable.extend(defaults.iter().filter(|d| !named.iter().any(|n| mixes_cpu(*n, **d))));
            usable.extend(named.difference(&usable.iter().copied().collect()));
        }
        if let Some((key, device)) = self.limited_devices().find(|(_, device)| !usable.contains(&device.value)) {
            return Err(refuse_unlisted(&device, &key, usable));
        }
        self.check_enough_devices(usable.len())?;
        Ok(usable)
    }
}

/// The grammar of single values.
impl Field<'_> {
    fn strategy(&self) -> Result<Strategy> {
        self.str().and_then(Strategy::named).ok_or_else(|| {
            let hint = with_nearest(Strategy::POSSIBLE, self.str().unwrap_or_default(), &Strategy::NAMES);
            self.refuse("no such strategy").hint(hint)
        })
    }

    fn device(&self) -> Result<Located<DeviceId>> {
        match self.str().map(str::parse) {
            Some(Ok(device)) => Ok(self.located(device)),
            Some(Err(_)) => {
                Err(self.refuse("not the name of a device").hint(device_hint(self.str().unwrap_or_default())))
            }
            None => Err(self.refuse("one device has to be named here").hint(match self.count() {
                Some(index) => format!("\"cuda:{index}\" is a GPU; {DEVICE_FORMS}"),
                None => format!("a component runs on one device, as a whole; {DEVICE_FORMS}"),
            })),
        }
    }

    fn devices(&self) -> Result<Vec<Located<DeviceId>>> {
        let hint = "devices = [\"cuda:0\", \"cuda:1\"]; without this key: all that suit";
        match self.items() {
            Some(items) if !items.is_empty() => items.iter().map(Self::device).collect(),
            _ => Err(self.refuse("an array of devices is wanted, with at least one").hint(hint)),
        }
    }

    fn replicas(&self) -> Result<Located<Replicas>> {
        match (self.count(), self.str()) {
            (Some(count), _) => Ok(self.located(Replicas::Count(count))),
            (_, Some("max")) => Ok(self.located(Replicas::Max)),
            _ => Err(self.refuse("not a number of replicas").hint("a whole number from 1, or \"max\"")),
        }
    }

    /// A key of which the rest of the grammar is not served: `possible` is the only value.
    fn only(&self, possible: &str, is_possible: impl Fn(&Self) -> bool) -> Result<()> {
        if is_possible(self) {
            return Ok(());
        }
        Err(self.refuse("this value is not possible so far").hint(format!("{} = {possible}", self.name)))
    }

    fn dtypes(&self) -> Result<DTypes> {
        let Some(entries) = self.table() else {
            return Ok(DTypes { default: self.dtype()?, components: BTreeMap::new() });
        };
        let components = entries.iter().map(|entry| Ok((entry.component_name()?, entry.dtype()?)));
        Ok(DTypes { default: None, components: components.collect::<Result<_>>()? })
    }

    fn dtype(&self) -> Result<Option<DType>> {
        match self.str() {
            Some("auto") => Ok(None),
            Some("f32") => Ok(Some(DType::F32)),
            Some("f16") => Ok(Some(DType::F16)),
            Some("bf16") => Ok(Some(DType::BF16)),
            other => {
                let near = match other.unwrap_or_default() {
                    "float32" | "fp32" => "; did you mean \"f32\"?",
                    "float16" | "fp16" | "half" => "; did you mean \"f16\"?",
                    "bfloat16" => "; did you mean \"bf16\"?",
                    _ => "",
                };
                Err(self.refuse("not a type of weights").hint(format!("\"auto\", \"f32\", \"f16\" or \"bf16\"{near}")))
            }
        }
    }

    fn size(&self) -> Result<Located<u64>> {
        let Some(text) = self.str() else {
            return Err(self.refuse("not a size").hint(match self.count() {
                Some(number) => format!("a size is text with a unit: \"{number}GiB\"?"),
                None => "a number and a unit: \"6GiB\", \"6.5GB\", \"512MiB\"".to_string(),
            }));
        };
        match parse_size(text) {
            Ok(bytes) => Ok(self.located_at_name(bytes)),
            Err(hint) => Err(self.refuse("not a size").hint(hint)),
        }
    }

    fn entries(&self, form: &str) -> Result<Vec<Self>> {
        self.table().ok_or_else(|| self.refuse("a table is wanted").hint(format!("[{}], then {form}", self.name)))
    }

    /// The name as a component's.
    fn component_name(&self) -> Result<String> {
        if COMPONENTS.contains(&self.name) {
            return Ok(self.name.to_string());
        }
        let components = format!("the components are {}", COMPONENTS.join(", "));
        let hint = self.misplaced().unwrap_or_else(|| with_nearest(&components, self.name, &COMPONENTS));
        Err(self.refuse_name("no such component").hint(hint))
    }

    /// The name as a device's.
    fn device_name(&self) -> Result<DeviceId> {
        self.name.parse().map_err(|_| {
            let dotted = match (self.is_dotted(), self.table().as_deref()) {
                (true, Some([inner])) => Some(format!(
                    "a dot makes a table in TOML; a device has a colon and quotes: \"{}:{}\" = …",
                    self.name, inner.name
                )),
                _ => None,
            };
            let hint = self.misplaced().or(dotted).unwrap_or_else(|| device_hint(self.name));
            self.refuse_name("not the name of a device").hint(hint)
        })
    }

    /// What to say of a name that belongs to the top of the file and not to this table.
    fn misplaced(&self) -> Option<String> {
        let table = self.key.strip_suffix(self.name)?.trim_end_matches('.');
        TOP_LEVEL.contains(&self.name).then(|| {
            format!(
                "`{}` belongs above the first [table]: TOML puts every key that follows [{table}] into it",
                self.name
            )
        })
    }
}

const DEVICE_FORMS: &str = "a device is \"cpu\", \"cpu:N\", \"cuda:N\" or \"wgpu:N\", N counted from 0";

/// What may have been meant by a device's name.
fn device_hint(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let kind_end = lower.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(lower.len());
    let (kind, rest) = lower.split_at(kind_end);
    let kind = match kind {
        "cuda" | "gpu" | "nvidia" | "" => Some(DeviceKind::Cuda),
        "wgpu" | "vulkan" | "metal" | "mps" | "dx" | "rocm" | "hip" | "xpu" => Some(DeviceKind::Wgpu),
        "cpu" | "host" => Some(DeviceKind::Cpu),
        _ => None,
    };
    let index = rest.trim_start_matches([':', '.', '-', '_', ' ']);
    match (kind, index, index.parse::<u16>()) {
        (Some(DeviceKind::Cpu), "", _) => format!("did you mean \"cpu\"? {DEVICE_FORMS}"),
        (Some(kind), "", _) if !text.is_empty() => format!("did you mean \"{}:0\"? {DEVICE_FORMS}", kind.name()),
        (Some(kind), _, Ok(index)) => format!("did you mean \"{}:{index}\"? {DEVICE_FORMS}", kind.name()),
        _ => DEVICE_FORMS.to_string(),
    }
}

/// What may have been meant by a line that is no TOML.
fn syntax_hint(line: &str) -> Option<String> {
    let line = line.split('#').next().unwrap_or_default().trim();
    if let Some(header) = line.strip_prefix("[device.").and_then(|rest| rest.strip_suffix(']')) {
        return Some(format!("a name with a colon needs quotes: [device.\"{header}\"]"));
    }
    let (key, value) = line.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    if key.contains(':') && !key.contains('"') {
        return Some(format!("a name with a colon needs quotes: \"{key}\" = …"));
    }
    if value.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Some(format!("text needs quotes: {key} = \"{value}\""));
    }
    None
}

/// `possible`, and which of `names` was probably meant.
fn with_nearest(possible: &str, word: &str, names: &[&str]) -> String {
    match nearest(word, names) {
        Some(near) => format!("{possible}; did you mean \"{near}\"?"),
        None => possible.to_string(),
    }
}

/// Whether one is all of the CPU and the other a share of it.
fn mixes_cpu(a: DeviceId, b: DeviceId) -> bool {
    a.kind == DeviceKind::Cpu && b.kind == DeviceKind::Cpu && a.index.is_some() != b.index.is_some()
}

fn refuse_mixed_cpu(device: &Located<DeviceId>, key: &str, other: DeviceId) -> Error {
    device
        .refuse(key, "`cpu` is all cores and `cpu:N` a share of them: a map has one or the other")
        .found(format!("{} beside {other}", device.value))
        .hint("\"cpu\" everywhere, or \"cpu:0\", \"cpu:1\" and so on")
}

fn refuse_unlisted(device: &Located<DeviceId>, key: &str, devices: impl IntoIterator<Item = DeviceId>) -> Error {
    let devices: Vec<_> = devices.into_iter().map(|device| format!("\"{device}\"")).collect();
    device
        .refuse(key, format!("{} is not among the devices that may be used", device.value))
        .found(format!("devices = [{}]", devices.join(", ")))
        .hint(format!("add \"{}\" to `devices`, or name one of those", device.value))
}

impl Strategy {
    const NAMES: [&str; 3] = ["balanced", "auto", "single"];
    const POSSIBLE: &str = "a strategy is \"balanced\" (the same as \"auto\") or \"single\"";

    fn named(name: &str) -> Option<Self> {
        match name {
            "balanced" | "auto" => Some(Self::Balanced),
            "single" => Some(Self::Single),
            _ => None,
        }
    }

    /// The name in a map.
    pub const fn name(self) -> &'static str {
        match self {
            Strategy::Balanced => "balanced",
            Strategy::Single => "single",
        }
    }
}
