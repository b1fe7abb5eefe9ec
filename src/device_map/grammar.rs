//! The grammar of a device map: from a spanned TOML tree to a [`DeviceMap`], which documents the meaning of the keys.

use std::collections::BTreeMap;

use super::{
    Convolution, DTypes, DeviceFacts, DeviceMap, GUIDED_FORM, InFlight, MapPlace, Numerics, Replicas, Reside, Strategy,
    fields::{Field, Located, Location, TomlText, nearest},
    size::{parse_accelerate_size, parse_size},
    with_nearest,
};
use crate::{
    backend::{DeviceId, DeviceKind, Precision},
    error::{Error, Result},
};

/// The keys before the first `[table]`, and the tables.
const TOP_LEVEL_KEYS: [&str; 12] = [
    "strategy",
    "devices",
    "replicas",
    "in_flight",
    "batch",
    "dtype",
    "numerics",
    "convolution",
    "max_memory",
    "device",
    "components",
    "replica",
];
/// The keys of a `[[replica]]`.
const REPLICA_KEYS: [&str; 7] = ["strategy", "devices", "in_flight", "batch", "numerics", "max_memory", "components"];
const FACT_KEYS: [&str; 9] = ["adapter", "cores", "reserve", "memory", "like", "flops", "bandwidth", "link", "count"];
/// The sets of keys that a place may have together if it is a table.
const PLACE_KEY_SETS: [&[&str]; 3] = [&["shards", "reside"], &["negative", "positive"], &["execute", "reside"]];
const PLACE_KEYS: [&str; 5] = ["execute", "reside", "negative", "positive", "shards"];

const LIMITS_FORM: &str = "a device and a size on each line: \"cuda:0\" = \"6GiB\"";
const COMPONENTS_FORM: &str = "a component and a device on each line: unet = \"cuda:0\"";
const SHARDS_FORM: &str = "shards = { \"\" = \"cuda:1\", \"down_blocks\" = \"cuda:0\" }; \"\" is the rest";
const RESIDE_FORM: &str =
    "reside = \"host\" (the weights are offloaded to the host's memory) or \"disk\" (they are read from their files)";
const PLACE_FORMS: &str = "a place is \"cuda:0\", { execute = \"cuda:0\", reside = \"host\" }, { negative = \"cuda:0\", \
     positive = \"cuda:1\" } or { shards = { \"\" = \"cuda:1\", \"down_blocks\" = \"cuda:0\" } }";
/// The largest number of devices, of places of a component, and of replicas; no machine has more.
const MAX_ITEMS: usize = 256;

/// The largest core number in `cores`.
const MAX_CORE: usize = 65_535;

/// Reads a map. Messages call the file `file`.
///
/// # Errors
/// At the first entry that is not valid.
pub(super) fn read(text: &str, file: &str) -> Result<DeviceMap> {
    let file = file.into();
    let toml = TomlText { file: &file, text };
    let root = toml.parse(syntax_hint)?;
    let mut map = DeviceMap::default();
    let mut fields = toml.fields(root.get_ref());
    let strategy = strategy_of(&fields, Strategy::default())?;
    // A replica inherits the other entries of the map, so replicas are read last.
    fields.sort_by_key(|field| field.name == "replica");
    for field in fields {
        if field.set_in(&mut map, strategy)? {
            continue;
        }
        match field.name {
            "replicas" => map.replicas = field.replicas()?,
            "dtype" => map.dtype = field.dtypes()?,
            "convolution" => map.convolution = field.convolution()?,
            "device" => {
                for device in field.entries("[device.\"cpu:0\"], then cores = \"0-15\"")? {
                    map.device.insert(device.device_name()?, device.facts()?);
                }
            }
            "replica" => {
                let form = "[[replica]] above each one, then devices = [\"cuda:0\"]";
                let replicas = match field.items() {
                    Some(items) if !items.is_empty() => field.not_too_many("replicas", items)?,
                    _ => return Err(field.refuse("an array of tables is wanted").hint(form)),
                };
                let top_level = map.clone();
                for (index, mut replica) in replicas.into_iter().enumerate() {
                    replica.key = format!("replica[{index}]");
                    map.replica.push(replica.replica(&top_level, strategy)?);
                }
            }
            name => {
                let keys = format!("the keys of a device map are {}", TOP_LEVEL_KEYS.join(", "));
                return Err(field.refuse_name("no such key").hint(with_nearest(&keys, name, &TOP_LEVEL_KEYS)));
            }
        }
    }
    Ok(map)
}

/// The strategy in `fields`, which is needed before other keys because the reading of sizes depends on it.
fn strategy_of(fields: &[Field], default: Strategy) -> Result<Strategy> {
    let strategy = fields.iter().find(|field| field.name == "strategy").map(Field::strategy).transpose()?;
    Ok(strategy.map_or(default, |strategy| strategy.value))
}

/// Reads a file of devices, in its order. Messages call the file `file`.
///
/// # Errors
/// At the first entry that is not valid.
pub(crate) fn read_devices(text: &str, file: &str) -> Result<Vec<(DeviceId, Located<DeviceFacts>)>> {
    let file = file.into();
    let toml = TomlText { file: &file, text };
    let root = toml.parse(syntax_hint)?;
    let form = "[device.\"cuda:0\"], then memory = \"8GiB\"";
    let mut devices = Vec::new();
    for field in toml.fields(root.get_ref()) {
        if field.name != "device" {
            let hint = format!("a file of devices has {form}, and nothing else");
            return Err(field.refuse_name("no such key").hint(hint));
        }
        for device in field.entries(form)? {
            let (id, facts) = (device.device_name()?, device.facts()?);
            facts.value.check(id)?;
            devices.push((id, facts));
        }
    }
    Ok(devices)
}

/// The grammar of single values.
impl<'a> Field<'a> {
    /// Stores this field in `map`, if a `[[replica]]` may have it too, and returns whether it did.
    fn set_in(&self, map: &mut DeviceMap, strategy: Strategy) -> Result<bool> {
        match self.name {
            "strategy" => map.strategy = self.strategy()?,
            "devices" => map.devices = self.devices()?,
            "in_flight" => map.in_flight = self.in_flight()?,
            "batch" => map.batch = self.number_from_1("requests in one forward pass")?,
            "numerics" => map.numerics = self.numerics()?,
            "max_memory" => map.max_memory.extend(self.limits(strategy)?),
            "components" => map.components.extend(self.components()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Reads one `[[replica]]` of a map with these entries at its top level and this strategy.
    fn replica(&self, top_level: &DeviceMap, strategy: Strategy) -> Result<Located<DeviceMap>> {
        let mut map = DeviceMap { replicas: Located::default(), ..top_level.clone() };
        let fields = self.entries("devices = [\"cuda:0\"]")?;
        let strategy = strategy_of(&fields, strategy)?;
        if let Some(devices) = fields.iter().find(|field| field.name == "devices") {
            map.devices = devices.devices()?;
        }
        // Top-level facts and limits of devices that this replica does not list are for other replicas.
        let listed: Vec<DeviceId> = map.devices.iter().map(|device| device.value).collect();
        map.max_memory.retain(|id, _| listed.is_empty() || listed.contains(id));
        map.device.retain(|id, _| listed.is_empty() || listed.contains(id));
        for field in fields {
            match field.name {
                _ if field.set_in(&mut map, strategy)? => {}
                name if TOP_LEVEL_KEYS.contains(&name) => {
                    let problem = match name {
                        "dtype" => "replicas share one type of weights, or a prompt would give another picture in each",
                        _ => "this is said once, for the whole map",
                    };
                    let hint = format!("`{name}` belongs above the first [[replica]]; {}", replica_keys());
                    return Err(field.refuse_name(problem).hint(hint));
                }
                name => {
                    return Err(field.refuse_name("no such key").hint(with_nearest(
                        &replica_keys(),
                        name,
                        &REPLICA_KEYS,
                    )));
                }
            }
        }
        Ok(self.located(map))
    }

    fn strategy(&self) -> Result<Located<Strategy>> {
        match self.str().and_then(Strategy::named) {
            Some(strategy) => Ok(self.located(strategy)),
            None => Err(self.refuse("no such strategy").hint(Strategy::possible(self.str().unwrap_or_default()))),
        }
    }

    /// Returns `items`, or an error if there are more `things` than a machine can have.
    fn not_too_many<T>(&self, things: &str, items: Vec<T>) -> Result<Vec<T>> {
        match items.len() {
            0..=MAX_ITEMS => Ok(items),
            _ => Err(self.refuse(format!("more than {MAX_ITEMS} {things}")).hint("a map is for one machine")),
        }
    }

    fn device(&self) -> Result<Located<DeviceId>> {
        match self.str().map(device_in_map) {
            Some(Ok(device)) => Ok(self.located(device)),
            Some(Err(_)) => {
                Err(self.refuse("not the name of a device").hint(device_hint(self.str().unwrap_or_default())))
            }
            None => Err(self.refuse("one device has to be named here").hint(match self.count() {
                Some(index) => format!("\"cuda:{index}\" is a GPU; {DEVICE_FORMS}"),
                None => DEVICE_FORMS.to_string(),
            })),
        }
    }

    fn devices(&self) -> Result<Vec<Located<DeviceId>>> {
        let hint = "devices = [\"cuda:0\", \"cuda:1\"]; without this key: all that suit";
        match self.items() {
            Some(items) if !items.is_empty() => self.not_too_many("devices", items)?.iter().map(Self::device).collect(),
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

    fn in_flight(&self) -> Result<Located<InFlight>> {
        match (self.count(), self.str()) {
            (Some(count), _) => Ok(self.located(InFlight::Count(count))),
            (_, Some("auto")) => Ok(self.located(InFlight::Auto)),
            _ => Err(self.refuse("not a number of requests").hint("a whole number from 1, or \"auto\"")),
        }
    }

    /// A number of `things`. [`DeviceMap::check`] rejects zero.
    fn number_from_1(&self, things: &str) -> Result<Located<usize>> {
        let count = self
            .count()
            .ok_or_else(|| self.refuse(format!("not a number of {things}")).hint("a whole number from 1"))?;
        Ok(self.located(count))
    }

    fn numerics(&self) -> Result<Located<Numerics>> {
        match self.str() {
            Some("any") => Ok(self.located(Numerics::Any)),
            Some("same") => Ok(self.located(Numerics::Same)),
            _ => Err(self
                .refuse("not a rule for numerics")
                .hint("\"any\", or \"same\": refuse a plan whose devices round differently")),
        }
    }

    fn convolution(&self) -> Result<Located<Convolution>> {
        match Convolution::NAMED.iter().find(|(name, _)| self.str() == Some(name)) {
            Some((_, convolution)) => Ok(self.located(*convolution)),
            None => Err(self
                .refuse("not an algorithm for the CPU's convolutions")
                .hint("\"winograd\", or \"direct\": slower, with less memory for weights")),
        }
    }

    /// The limits of a map with this strategy. With the strategy of diffusers, sizes are read as diffusers reads them.
    fn limits(&self, strategy: Strategy) -> Result<BTreeMap<DeviceId, Located<u64>>> {
        let size = |limit: &Self| match strategy {
            Strategy::DiffusersBalanced => limit.accelerate_size(),
            _ => limit.size(),
        };
        let limits = self.not_too_many("limits", self.entries(LIMITS_FORM)?)?;
        limits.iter().map(|limit| Ok((limit.device_name()?, size(limit)?))).collect()
    }

    /// A size as accelerate reads it, or else as other sizes of a map.
    fn accelerate_size(&self) -> Result<Located<u64>> {
        match self.count().map(|bytes| bytes as u64).or_else(|| parse_accelerate_size(self.str()?)) {
            Some(bytes) => Ok(self.located_at_name(bytes)),
            None => self.size(),
        }
    }

    fn components(&self) -> Result<BTreeMap<String, Located<Vec<MapPlace>>>> {
        let entries = self.entries(COMPONENTS_FORM)?;
        entries.iter().map(|entry| Ok((entry.component_name()?, entry.pool()?))).collect()
    }

    /// A place, or an array of places.
    fn pool(&self) -> Result<Located<Vec<MapPlace>>> {
        Ok(self.located(match self.items() {
            Some(items) => self.not_too_many("places", items)?.iter().map(Self::place).collect::<Result<_>>()?,
            None => vec![self.place()?],
        }))
    }

    fn place(&self) -> Result<MapPlace> {
        let Some(entries) = self.table() else {
            return match (self.str(), self.count(), self.items()) {
                (None, None, None) => Err(self.refuse("not a place").hint(PLACE_FORMS)),
                (_, _, Some(_)) => Err(self
                    .refuse("one place is wanted here, not a pool")
                    .hint(format!("a pool is all of a component: unet = [\"cuda:0\", \"cuda:1\"]; {PLACE_FORMS}"))),
                _ => Ok(MapPlace::On { device: self.device()?, reside: Located::default() }),
            };
        };
        let has = |names: &[&str]| entries.iter().any(|entry| names.contains(&entry.name));
        let form = match () {
            () if has(&["shards"]) => PLACE_KEY_SETS[0],
            () if has(&["negative", "positive"]) => PLACE_KEY_SETS[1],
            () => PLACE_KEY_SETS[2],
        };
        if let Some(entry) = entries.iter().find(|entry| !form.contains(&entry.name)) {
            if !PLACE_KEYS.contains(&entry.name) {
                return Err(entry.refuse_place_key());
            }
            let hint = match entry.name {
                "reside" => "{ negative = { execute = \"cuda:0\", reside = \"host\" }, positive = … }",
                _ => PLACE_FORMS,
            };
            return Err(entry.refuse_name(format!("this does not go with `{}`", form[0])).hint(hint));
        }
        let find = |name: &str| entries.iter().find(|entry| entry.name == name);
        let wanted = |name: &str, hint: &str| {
            find(name).ok_or_else(|| self.refuse(format!("`{name}` is missing")).hint(hint.to_string()))
        };
        let reside = || find("reside").map_or_else(|| Ok(Located::default()), Self::reside);
        match form[0] {
            "shards" => Ok(MapPlace::Cut { shards: wanted("shards", SHARDS_FORM)?.shards()?, reside: reside()? }),
            "negative" => Ok(MapPlace::Guided {
                negative: Box::new(wanted("negative", GUIDED_FORM)?.place()?),
                positive: Box::new(wanted("positive", GUIDED_FORM)?.place()?),
            }),
            _ => Ok(MapPlace::On { device: wanted("execute", PLACE_FORMS)?.device()?, reside: reside()? }),
        }
    }

    /// The error for an unknown key of a place: a typing error, or a path of the model outside `shards`.
    fn refuse_place_key(&self) -> Error {
        let hint = match nearest(self.name, &PLACE_KEYS) {
            Some(near) => format!("did you mean `{near}`? {PLACE_FORMS}"),
            None => format!("a component is cut into pieces by {SHARDS_FORM}"),
        };
        self.refuse_name("no such key").hint(hint)
    }

    fn shards(&self) -> Result<BTreeMap<String, Located<DeviceId>>> {
        let Some(entries) = self.table() else {
            return Err(self.refuse("a table of paths and devices is wanted").hint(SHARDS_FORM));
        };
        let shard = |entry: &Field<'a>| match (entry.is_dotted(), entry.table().as_deref()) {
            (true, Some([inner, ..])) => Err(entry
                .refuse_name("a path with a dot needs quotes")
                .hint(format!("\"{}.{}\" = …; without them, a dot makes a table in TOML", entry.name, inner.name))),
            (false, Some(_)) => Err(entry
                .refuse("one device has to be named here")
                .hint(format!("`reside` stands beside `shards` and holds for all of them; {DEVICE_FORMS}"))),
            _ => Ok((entry.name.to_string(), entry.located_as_entry(entry.device()?.value))),
        };
        entries.iter().map(shard).collect()
    }

    fn reside(&self) -> Result<Located<Reside>> {
        match self.str() {
            Some("host") => Ok(self.located(Reside::Host)),
            Some("disk") => Ok(self.located(Reside::Disk)),
            other => Err(self.refuse("weights cannot live there").hint(match other.map(str::parse::<DeviceId>) {
                Some(Ok(DeviceId::CPU)) => format!("did you mean \"host\"? {RESIDE_FORM}"),
                Some(Ok(_)) => format!("{RESIDE_FORM}; without `reside` they live where they are used"),
                _ => with_nearest(RESIDE_FORM, other.unwrap_or_default(), &["host", "disk"]),
            })),
        }
    }

    fn facts(&self) -> Result<Located<DeviceFacts>> {
        let mut facts = DeviceFacts::default();
        for fact in self.entries("reserve = \"1GiB\"")? {
            match fact.name {
                "adapter" => {
                    let number = fact.count().ok_or_else(|| {
                        fact.refuse("not the number of an adapter").hint("`sdshard devices` lists them, from 0")
                    })?;
                    facts.adapter = Some(fact.located(number));
                }
                "cores" => facts.cores = Some(fact.cores()?),
                "reserve" => facts.reserve = Some(fact.size()?),
                "memory" => facts.memory = Some(fact.size()?),
                "like" => match fact.str() {
                    Some(name) if !name.trim().is_empty() => facts.like = Some(fact.located(name.trim().to_string())),
                    _ => {
                        return Err(fact
                            .refuse("not the name of a kind of device")
                            .hint("like = \"l4\", a device of the catalogue"));
                    }
                },
                "flops" => match fact.number() {
                    Some(flops) if flops > 0.0 => facts.flops = Some(fact.located(flops)),
                    _ => {
                        return Err(fact
                            .refuse("not a number of operations per second")
                            .hint("flops = 82.6e12 is 82.6 TFLOP/s"));
                    }
                },
                "bandwidth" => facts.bandwidth = Some(fact.bytes_per_second()?),
                "link" => facts.link = Some(fact.bytes_per_second()?),
                "count" => facts.count = Some(fact.number_from_1("devices")?),
                name => {
                    let known = format!("the facts about a device are {}", FACT_KEYS.join(", "));
                    let hint = fact.misplaced().unwrap_or_else(|| with_nearest(&known, name, &FACT_KEYS));
                    return Err(fact.refuse_name("no such key").hint(hint));
                }
            }
        }
        Ok(self.located_at_name(facts))
    }

    /// Core numbers and ranges in ascending order, such as `"0-3,8"`.
    fn cores(&self) -> Result<Located<Vec<usize>>> {
        let refuse = |problem: &str| {
            self.refuse(problem).hint(match self.count() {
                Some(core) => format!("a list is text: cores = \"{core}\""),
                None => "numbers and ranges in ascending order: cores = \"0-15\", cores = \"0-3,8\"".to_string(),
            })
        };
        let mut cores = Vec::new();
        for range in self.str().ok_or_else(|| refuse("not a list of cores"))?.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse::<usize>()) else {
                return Err(refuse("not a list of cores"));
            };
            if first > last || cores.last().is_some_and(|&before| first <= before) {
                return Err(refuse("the cores are not in ascending order"));
            }
            if last > MAX_CORE {
                return Err(refuse(&format!("there is no core beyond {MAX_CORE}")));
            }
            cores.extend(first..=last);
        }
        Ok(self.located(cores))
    }

    fn bytes_per_second(&self) -> Result<Located<u64>> {
        let forms = "bytes per second, written as a size: \"1008GB/s\"";
        let text = self.str().ok_or_else(|| self.refuse("not a rate").hint(forms))?;
        match parse_size(text.trim().strip_suffix("/s").unwrap_or(text)) {
            Ok(0) => Err(self.refuse("nothing would ever arrive").hint(forms)),
            Ok(bytes) => Ok(self.located(bytes)),
            Err(hint) => Err(self.refuse("not a rate").hint(format!("{forms}; {hint}"))),
        }
    }

    fn dtypes(&self) -> Result<DTypes> {
        let Some(entries) = self.table() else {
            return Ok(DTypes { default: self.located(self.dtype()?), components: BTreeMap::new() });
        };
        let components = entries.iter().map(|entry| Ok((entry.component_name()?, entry.located(entry.dtype()?))));
        Ok(DTypes { default: Located::default(), components: components.collect::<Result<_>>()? })
    }

    fn dtype(&self) -> Result<Option<Precision>> {
        let name = self.str().unwrap_or_default();
        let known = Precision::ALL.into_iter().find(|precision| precision.name() == name);
        if known.is_some() || name == "auto" {
            return Ok(known);
        }
        let near = match name {
            "float32" | "fp32" => "; did you mean \"f32\"?",
            "float16" | "fp16" | "half" => "; did you mean \"f16\"?",
            "bfloat16" => "; did you mean \"bf16\"?",
            "i8" | "q8" | "q8_0" => "; did you mean \"int8\"?",
            _ => "",
        };
        let values = "\"auto\", \"f32\", \"f16\", \"bf16\" or \"int8\"";
        Err(self.refuse("not a type of weights").hint(format!("{values}{near}")))
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
        self.table().ok_or_else(|| {
            let header = match self.name {
                "" => "[[replica]]".to_string(),
                name if name.contains(':') => format!("[device.\"{name}\"]"),
                name if self.key.starts_with("replica[") => format!("[replica.{name}]"),
                name => format!("[{name}]"),
            };
            self.refuse("a table is wanted").hint(format!("{header}, then {form}"))
        })
    }

    /// The name of a component. Whether it exists is checked when the model is known.
    fn component_name(&self) -> Result<String> {
        match self.misplaced() {
            Some(hint) => Err(self.refuse_name("no such component").hint(hint)),
            None => Ok(self.name.to_string()),
        }
    }

    /// The name of a device.
    fn device_name(&self) -> Result<DeviceId> {
        device_in_map(self.name).map_err(|_| {
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

    /// A hint if the name is a key that belongs above this table.
    fn misplaced(&self) -> Option<String> {
        let table = self.key.strip_suffix(self.name)?.trim_end_matches('.');
        let name = self.name;
        match table.strip_prefix("replica[").and_then(|rest| rest.split_once("].")) {
            Some((_, table)) if REPLICA_KEYS.contains(&name) => Some(format!(
                "`{name}` belongs directly under [[replica]]: TOML puts every key that follows [replica.{table}] \
                 into it"
            )),
            _ => TOP_LEVEL_KEYS.contains(&name).then(|| {
                format!("`{name}` belongs above the first [table]: TOML puts every key that follows [{table}] into it")
            }),
        }
    }
}

fn replica_keys() -> String {
    format!("the keys of a [[replica]] are {}", REPLICA_KEYS.join(", "))
}

const DEVICE_FORMS: &str = "a device is \"cpu\", \"cpu:N\", \"cuda:N\", \"wgpu:N\" or \"device:N\", N counted from 0";

/// Parses the name of a device in a map, which may be `device:N`.
fn device_in_map(name: &str) -> Result<DeviceId> {
    match name.strip_prefix("device:") {
        // N has the same syntax as in other names of devices.
        Some(number) => Ok(DeviceId { kind: DeviceKind::Numbered, ..format!("cpu:{number}").parse()? }),
        None => name.parse(),
    }
}

/// A suggestion for an invalid name of a device.
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

/// A suggestion for a location that is not valid TOML.
fn syntax_hint(at: &Location) -> Option<String> {
    let line = at.text.split('#').next().unwrap_or_default().trim();
    if let Some(header) = line.strip_prefix("[device.").and_then(|rest| rest.strip_suffix(']')) {
        return Some(format!("a name with a colon needs quotes: [device.\"{header}\"]"));
    }
    // Inside braces or brackets, look at the text around the location of the error; otherwise at the whole line.
    let end = at.text.char_indices().nth(at.column - 1 - at.skipped).map_or(at.text.len(), |(end, _)| end);
    let (before, rest) = at.text.split_at(end);
    let start = before.rfind(['{', '[', ',']);
    let piece = match start {
        Some(start) if line.contains('=') => {
            let inner = rest.find(['}', ']', ',']).map_or(at.text.len(), |stop| end + stop);
            at.text[start + 1..inner].trim()
        }
        _ => line,
    };
    let Some((key, value)) = piece.split_once('=') else {
        let is_word = start.is_some() && piece.starts_with(|c: char| c.is_ascii_alphabetic());
        return is_word.then(|| format!("text needs quotes: \"{piece}\""));
    };
    let (key, value) = (key.trim(), value.trim());
    if key.contains(':') && !key.contains('"') {
        return Some(format!("a name with a colon needs quotes: \"{key}\" = …"));
    }
    if key.contains('.') && !key.contains('"') && value.starts_with('"') {
        return Some(format!("a path with a dot needs quotes: \"{key}\" = …"));
    }
    if value.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Some(format!("text needs quotes: {key} = \"{value}\""));
    }
    None
}
