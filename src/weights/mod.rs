//! Named tensors on disk: finding their files, translating their names, and checking that each is read once in the
//! right shape.

mod download;
mod embedding;
pub mod files;
#[cfg(feature = "hub")]
pub mod hub;
mod identity;
mod index;
mod loaded;
pub mod lora;
mod names;
mod new_tokens;
mod offload;
mod safetensors;
mod scope;
mod tensor_file;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use download::{Components, Download, HubPlace, ModelLayout, Wanted, is_hub_id};
pub use embedding::{Embedding, Vectors};
pub use files::ModelFiles;
pub use identity::{content_hash, digits, file_hash, hex, identity, old_hash};
pub use loaded::Loaded;
use lora::Adapters;
pub use names::{CONTROLNET, UnetBlocks};
use names::{Naming, Part};
pub use new_tokens::{EmbeddingChoice, NewTokens};
pub use offload::{Ahead, Offload};
pub use scope::{OffloadBuilder, Packed, Scope};
use serde::Serialize;
pub use tensor_file::TensorFile;

use crate::{
    backend::Values,
    error::{Error, Result},
};

/// Where weights are kept while they are not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reside {
    /// On the device that uses them.
    #[default]
    Device,
    /// Packed in host memory: the weights of one section at a time are fetched to the device.
    Host,
    /// In their file: they are read and packed each time that they are fetched.
    Disk,
}

/// The progress of reading one component's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loading<'a> {
    /// The name of the component.
    pub component: &'a str,
    /// The bytes of its files that have been read; all of them once the component is loaded.
    pub done_bytes: usize,
    /// The bytes of its files that will be read.
    pub total_bytes: usize,
}

/// A callback before every tensor is read, and at the end. An error stops the loading.
#[derive(Clone)]
pub struct Observer(pub Arc<dyn Fn(Loading) -> Result<()> + Send + Sync>);

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

/// The tensors of one component. Clones share them.
#[derive(Debug, Clone)]
pub struct Weights(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    component: String,
    /// `None` if only shapes are needed, so that every tensor exists.
    stored: Option<Stored>,
    seen: Mutex<Seen>,
    observer: Option<Observer>,
    /// Whether every tensor is checked, and none has values.
    headers_only: bool,
    /// The LoRAs that change the values.
    adapters: Arc<Adapters>,
    /// The vectors at the end of the token table.
    new_tokens: Option<Arc<NewTokens>>,
    /// The bytes that were read and the total bytes, from the first tensor on.
    progress: Mutex<Option<(usize, usize)>>,
}

/// A file and the index of a tensor in it.
type TensorPlace = (usize, usize);

/// What was read or declared unused.
#[derive(Debug, Default)]
struct Seen {
    /// Current names, with the shapes in which the network needs them.
    names: HashMap<String, Vec<usize>>,
    /// Stored tensors: one of them may have the values of several names.
    tensors: HashSet<TensorPlace>,
}

#[derive(Debug)]
struct Stored {
    files: Vec<safetensors::File>,
    naming: Naming,
    /// The place of each of the component's tensors, by its key: see [`Naming::key`].
    places: HashMap<String, TensorPlace>,
    is_variant: bool,
    /// Whether the file is a checkpoint with several components.
    is_shared: bool,
}

/// The module of a text encoder's token table.
const TOKEN_TABLE: &str = "embeddings.token_embedding";

/// The weight and the bias of a module.
type ModuleTensors<'a> = (Loaded<'a>, Option<Loaded<'a>>);

impl Weights {
    /// Opens the weights of `component`, a folder of the model such as `unet`, and checks every header.
    ///
    /// Uses the files of `variant` if there are any, or else the plain ones. Reads no tensor yet.
    pub fn open(files: &ModelFiles, component: &str, variant: Option<&str>) -> Result<Self> {
        let doing = |error: Error| error.context(format!("loading {component}"));
        let stored = Stored::open(files, component, variant).map_err(doing)?;
        Ok(Self::new(component, Some(stored)))
    }

    /// Weights that exist in every requested shape and have no values: for plans.
    pub fn shapes_only(component: &str) -> Self {
        Self::new(component, None)
    }

    fn new(component: &str, stored: Option<Stored>) -> Self {
        let component = component.to_owned();
        let (observer, headers_only) = (None, false);
        let (seen, progress, adapters) = (Mutex::default(), Mutex::default(), Arc::default());
        let new_tokens = None;
        Self(Arc::new(Inner { component, stored, seen, observer, headers_only, progress, adapters, new_tokens }))
    }

    /// Sets the observer of the reading. Nothing may have been read before.
    #[must_use]
    pub fn observed(self, observer: Option<Observer>) -> Self {
        let inner = Arc::into_inner(self.0).expect("weights that were just opened have no clones");
        Self(Arc::new(Inner { observer, ..inner }))
    }

    /// Sets the LoRAs that change the values. Nothing may have been read before.
    #[must_use]
    pub fn adapted(self, adapters: Arc<Adapters>) -> Self {
        let inner = Arc::into_inner(self.0).expect("weights that were just opened have no clones");
        Self(Arc::new(Inner { adapters, ..inner }))
    }

    /// Sets the vectors at the end of a text encoder's token table. Nothing may have been read before.
    #[must_use]
    pub fn with_new_tokens(self, new_tokens: Option<Arc<NewTokens>>) -> Self {
        let inner = Arc::into_inner(self.0).expect("weights that were just opened have no clones");
        Self(Arc::new(Inner { new_tokens, ..inner }))
    }

    /// Removes the values: names, shapes and types are checked, but only headers are read. Nothing may have been read
    /// before.
    #[must_use]
    pub fn headers_only(self) -> Self {
        let inner = Arc::into_inner(self.0).expect("weights that were just opened have no clones");
        Self(Arc::new(Inner { headers_only: true, ..inner }))
    }

    /// The component's name.
    pub fn component(&self) -> &str {
        &self.0.component
    }

    /// Whether the files are those of the requested variant.
    pub fn is_variant(&self) -> bool {
        self.0.stored.as_ref().is_some_and(|stored| stored.is_variant)
    }

    /// Whether there is such a tensor; always true if only shapes are needed.
    pub fn has(&self, name: &str) -> bool {
        self.0.stored.as_ref().is_none_or(|stored| stored.find(name).is_some())
    }

    /// The shape of the stored tensor that has the values of `name`; `None` if there is none.
    pub fn stored_shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.0.stored.as_ref()?.find(name)?.1.shape)
    }

    /// Whether the files have a tensor of exactly this name, of whatever component.
    pub fn has_stored(&self, name: &str) -> bool {
        let files = self.0.stored.iter().flat_map(|stored| &stored.files);
        files.flat_map(|file| &file.tensors).any(|tensor| tensor.name == name)
    }

    /// A text in the metadata of the first file's header.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.0.stored.as_ref()?.files.first()?.metadata.get(key).map(String::as_str)
    }

    /// The tensor `name`, which must have this shape. Names are the reference's current ones, without `text_model.`; in
    /// a single-file checkpoint their values are found under the names of LDM and OpenCLIP.
    ///
    /// F64 tensors are rounded to f32, as in the reference; those in F8_E4M3 and F8_E5M2 are widened to f16, which has
    /// all their values. Fails if the tensor is missing, has another shape, or has a type that is not one of these or
    /// F32, F16 or BF16.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Loaded<'_>> {
        let is_new = self.seen().names.insert(name.to_owned(), shape.to_vec()).is_none();
        let Some(stored) = &self.0.stored else { return Ok(Loaded::Stored(Values::ShapeOnly)) };
        let doing = |what: String| Error::input(format!("loading {}: {what}", self.0.component));
        let Some((place, tensor, part)) = stored.find(name) else {
            let files: Vec<&str> = stored.files.iter().map(|file| file.path.as_str()).collect();
            return Err(doing(format!(
                "there is no `{}` in {}, this model needs one of {shape:?}",
                stored.naming.stored_name(name),
                files.join(", ")
            )));
        };
        let path = &stored.files[place.0].path;
        let fits = match (part, &tensor.shape[..], shape) {
            (Part::Whole, found, wanted) => names::shape_fits(name, found, wanted),
            (Part::Third(_), [found, rest @ ..], [wanted, others @ ..]) => {
                Some(*found) == wanted.checked_mul(3) && rest == others
            }
            (Part::Transposed, &[rows, columns], &[wanted, width]) => (rows, columns) == (width, wanted),
            _ => false,
        };
        if !fits {
            let needs = match part {
                Part::Whole => "this model needs",
                Part::Third(_) => "this model needs of each third",
                Part::Transposed => "this model needs of the transposed tensor",
            };
            let error = doing(format!("`{}` is {:?}, {needs} {shape:?}", tensor.name, tensor.shape))
                .found(format!("that shape in {path}"));
            return Err(match (name, tensor.shape.get(1)) {
                ("conv_in.weight", Some(9)) => {
                    error.hint("nine input channels is an inpainting checkpoint, whose config has `in_channels` 9")
                }
                ("conv_in.weight", Some(8)) => {
                    error.hint("eight input channels is an image-editing checkpoint, which sdshard does not run")
                }
                _ => error,
            });
        }
        let dtype = tensor.read_dtype().ok_or_else(|| {
            doing(format!("`{}` must be F64, F32, F16, BF16, F8_E4M3 or F8_E5M2", tensor.name))
                .found(format!("{} in {path}", tensor.dtype))
        })?;
        if is_new && !self.0.headers_only {
            self.notify_observer(stored, tensor.bytes() / if matches!(part, Part::Third(_)) { 3 } else { 1 })?;
        }
        self.seen().tensors.insert(place);
        if self.0.headers_only {
            return Ok(Loaded::Stored(Values::ShapeOnly));
        }
        match part {
            Part::Whole => Ok(Loaded::Stored(tensor.values(dtype, 0, 1))),
            Part::Third(third) => Ok(Loaded::Stored(tensor.values(dtype, third, 3))),
            Part::Transposed => {
                let (rows, values) = (shape[1], Loaded::Stored(tensor.values(dtype, 0, 1)).to_f32()?);
                let element = |i: usize| values[i % rows * shape[0] + i / rows];
                Ok(Loaded::Computed((0..values.len()).map(element).collect()))
            }
        }
    }

    /// The modules whose weights were read, with the shapes of these.
    pub fn modules(&self) -> Vec<(String, Vec<usize>)> {
        let seen = self.seen();
        let module = |(name, shape): (&String, &Vec<usize>)| {
            name.strip_suffix(".weight").map(|module| (module.to_owned(), shape.clone()))
        };
        seen.names.iter().filter_map(module).collect()
    }

    /// Adds what LoRAs change in a module to its tensors, which are of these shapes, and to the token table its new rows.
    ///
    /// # Errors
    /// If a file cannot be read, or an adapter does not fit.
    fn adapt(&self, module: &str, shape: &[usize], tensors: &mut ModuleTensors<'_>) -> Result<()> {
        let Inner { adapters, component, headers_only, new_tokens, .. } = &*self.0;
        let new_tokens = new_tokens.as_ref().filter(|_| module == TOKEN_TABLE);
        let is_changed = new_tokens.is_some() || adapters.is_changed(component, module);
        if self.0.stored.is_none() || *headers_only || !is_changed {
            return Ok(());
        }
        let (mut weight, mut bias) = (tensors.0.to_f32()?, tensors.1.as_ref().map(Loaded::to_f32).transpose()?);
        if adapters.is_changed(component, module) {
            adapters.apply(component, module, shape, &mut weight, bias.as_deref_mut())?;
        }
        if let Some(NewTokens { first_id, vectors }) = new_tokens.map(|tokens| &**tokens) {
            weight.truncate(first_id * shape[1]);
            weight.extend_from_slice(vectors);
        }
        *tensors = (Loaded::Computed(weight), bias.map(Loaded::Computed));
        Ok(())
    }

    /// Declares that all tensors with the given prefix are not read on purpose, for example a VAE's encoder, which has
    /// the same prefix in every naming.
    pub fn skip(&self, prefix: &str) {
        let Some(stored) = &self.0.stored else { return };
        let places = stored.places.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(_, place)| *place);
        self.seen().tensors.extend(places);
    }

    /// Ends the reading, and calls the observer. Tensors that were not read are in [`Weights::left_over`].
    pub fn finish(&self) -> Result<()> {
        let progress = *self.0.progress.lock().unwrap_or_else(PoisonError::into_inner);
        match (&self.0.observer, progress) {
            (Some(observer), Some((_, total_bytes))) => {
                (observer.0)(Loading { component: &self.0.component, done_bytes: total_bytes, total_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Whether both are read from the same files.
    pub fn shares_files_with(&self, other: &Self) -> bool {
        let paths = |weights: &Self| -> Vec<String> {
            weights.0.stored.iter().flat_map(|stored| &stored.files).map(|file| file.path.clone()).collect()
        };
        paths(self) == paths(other)
    }

    /// Fails if one of the files was changed since it was opened: a mixture of both versions may have been read.
    pub fn check_unchanged(&self) -> Result<()> {
        self.0.stored.iter().flat_map(|stored| &stored.files).try_for_each(safetensors::File::check_unchanged)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the observer before a tensor of `bytes` is read.
    fn notify_observer(&self, stored: &Stored, bytes: usize) -> Result<()> {
        let Some(observer) = &self.0.observer else { return Ok(()) };
        let (done_bytes, total_bytes) = {
            let mut progress = self.0.progress.lock().unwrap_or_else(PoisonError::into_inner);
            let (done, _) = progress.get_or_insert_with(|| {
                let seen = self.seen();
                let open = stored.places.values().filter(|place| !seen.tensors.contains(*place));
                (0, open.map(|&(file, tensor)| stored.files[file].tensors[tensor].bytes()).sum::<usize>())
            });
            let before = *done;
            *done += bytes;
            (before, progress.map_or(0, |(_, total)| total))
        };
        (observer.0)(Loading { component: &self.0.component, done_bytes, total_bytes })
    }
}

impl Stored {
    fn open(files: &ModelFiles, component: &str, variant: Option<&str>) -> Result<Self> {
        let sources = index::find(files, component, variant)?;
        let opened =
            sources.files.iter().map(|path| safetensors::File::open(files, path)).collect::<Result<Vec<_>>>()?;
        for file in &opened {
            let scale = file.tensors.iter().map(|tensor| tensor.name.as_str()).find(|name| names::is_scale(name));
            if let Some(scale) = scale.or(file.metadata.contains_key("_quantization_metadata").then_some("metadata")) {
                return Err(Error::input(format!("{}: quantised weights with scales are not supported", file.path))
                    .found(format!("`{scale}`"))
                    .hint("the same model in f16, bf16 or f32, or in fp8 without scales"));
            }
        }
        let single = files.file_of(component);
        let naming = match (&single, &opened[..]) {
            (Some((_, is_own)), [file]) => {
                let names = file.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
                let naming = Naming::in_file(component, &names, *is_own);
                let naming = naming.ok_or_else(|| names::missing(component, &file.path, &names, *is_own))?;
                if files.is_averaged() && component == "unet" { averaged(naming, file)? } else { naming }
            }
            _ => Naming::folder(),
        };
        let mut places = HashMap::new();
        for (file_index, file) in opened.iter().enumerate() {
            for (tensor_index, tensor) in file.tensors.iter().enumerate() {
                let Some(key) = naming.key(&tensor.name) else { continue };
                if let Some((other, _)) = places.insert(key.into_owned(), (file_index, tensor_index)) {
                    return Err(Error::input(format!("`{}` is stored twice", tensor.name))
                        .found(format!("once in {} and once in {}", opened[other].path, file.path)));
                }
            }
        }
        for (tensor, home) in &sources.homes {
            if places.get(&*names::modern(tensor)).is_none_or(|(file, _)| file != home) {
                return Err(Error::input(format!("the index says that `{tensor}` is in {}", opened[*home].path))
                    .found("no such tensor in that file"));
            }
        }
        let is_shared = single.is_some_and(|(_, is_own)| !is_own);
        Ok(Self { files: opened, naming, places, is_variant: sources.is_variant, is_shared })
    }

    /// The stored tensor that has the values of `name`, and which part of it they are.
    fn find(&self, name: &str) -> Option<(TensorPlace, &safetensors::Tensor, Part)> {
        let (key, part) = self.naming.key_of(name);
        let &place = self.places.get(&*key)?;
        Some((place, &self.files[place.0].tensors[place.1], part))
    }

    /// Whether a stored tensor may stay unread without a warning.
    fn is_ignorable(&self, tensor: &str) -> bool {
        match self.naming.key(tensor) {
            Some(key) if self.naming.is_ignorable(&key) => true,
            Some(_) => self.is_shared && names::is_ignorable_in_file(tensor),
            // The other tensors of a whole checkpoint, of which only one component is used.
            None => !self.is_shared || names::is_ignorable_in_file(tensor) || self.naming.replaces(tensor),
        }
    }
}

/// The naming of the averages of a UNet's weights in a single file.
fn averaged(naming: Naming, file: &safetensors::File) -> Result<Naming> {
    let averaged = naming.averaged().filter(|naming| {
        let first = naming.stored_name("conv_in.weight");
        file.tensors.iter().any(|tensor| tensor.name == first)
    });
    averaged.ok_or_else(|| {
        Error::input(format!("{}: the file has no averages (EMA) of its UNet's weights", file.path))
            .hint("the same without --ema")
    })
}

/// The number of stored tensors that no component of a `group`, which has the same files, has read or skipped, and the
/// first of their names. diffusers and transformers ignore such tensors: those of an adapter, or of layers beyond the
/// number in the config.
pub fn left_over(group: &[Weights]) -> Option<(usize, &str)> {
    let seen: Vec<_> = group.iter().filter_map(|weights| Some((weights.0.stored.as_ref()?, weights.seen()))).collect();
    let files = &group.first()?.0.stored.as_ref()?.files;
    let is_left = |place: TensorPlace, name: &str| {
        seen.iter().all(|(stored, seen)| !seen.tensors.contains(&place) && !stored.is_ignorable(name))
    };
    let (mut count, mut first) = (0, None);
    for (file_index, file) in files.iter().enumerate() {
        for (tensor_index, tensor) in file.tensors.iter().enumerate() {
            if is_left((file_index, tensor_index), &tensor.name) {
                count += 1;
                first = first.into_iter().chain([tensor.name.as_str()]).min();
            }
        }
    }
    Some((count, first?))
}

/// The components among `components` that have no files of `variant` and would use their plain ones.
///
/// Fails if none has any: the name of the variant is then probably wrong.
pub fn without_variant(files: &ModelFiles, components: &[&str], variant: &str) -> Result<Vec<String>> {
    let mut without = Vec::new();
    for &component in components {
        if !index::find(files, component, Some(variant))?.is_variant {
            without.push(component.to_owned());
        }
    }
    if without.len() == components.len() {
        return Err(Error::input(format!("the model {} has no files of the variant \"{variant}\"", files.name()))
            .hint("leave the variant out to use its plain files"));
    }
    Ok(without)
}

/// The files with the weights of `component`, as [`Weights::open`] finds them.
///
/// # Errors
/// If there are none, or an index is invalid.
pub fn sources(files: &ModelFiles, component: &str, variant: Option<&str>) -> Result<Vec<String>> {
    Ok(index::find(files, component, variant)?.files)
}

/// FNV-1a, 64 bits: distinguishes values, and is not cryptographic.
pub(crate) struct Fnv(pub(crate) u64);

impl Fnv {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::DType;

    const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

    fn model(files: Vec<(&'static str, Vec<u8>)>) -> ModelFiles {
        let files: Vec<files::EmbeddedFile> =
            files.into_iter().map(|(name, bytes)| (name, &*Vec::leak(bytes))).collect();
        ModelFiles::embedded("m", files.leak())
    }

    /// A safetensors file of F16 tensors full of zeros.
    fn tensors(list: &[(&str, &[usize])]) -> Vec<u8> {
        let mut end = 0;
        let entries: Vec<String> = list
            .iter()
            .map(|(name, shape)| {
                let start = end;
                end += 2 * shape.iter().product::<usize>();
                format!(r#""{name}":{{"dtype":"F16","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
            })
            .collect();
        safetensors::tests::file(&format!("{{{}}}", entries.join(",")), end)
    }

    #[test]
    fn every_tensor_is_read_in_its_shape() {
        let files = model(vec![(UNET, tensors(&[("a.weight", &[2, 3]), ("b", &[4]), ("text_model.c", &[1])]))]);
        let weights = Weights::open(&files, "unet", None).unwrap();
        let loaded = weights.get("a.weight", &[2, 3]).unwrap();
        let Values::Data { dtype, bytes } = loaded.values() else { panic!() };
        assert_eq!((dtype, bytes.len()), (DType::F16, 12));
        weights.get("b", &[4]).unwrap();
        assert!(weights.has("c") && !weights.has("d"));
        weights.get("c", &[1]).unwrap();
        weights.check_unchanged().unwrap();
        weights.finish().unwrap();
    }

    #[test]
    fn a_wrong_or_missing_tensor_is_named() {
        let list: &[(&str, &[usize])] = &[("conv_in.weight", &[320, 9, 3, 3]), ("b", &[4])];
        let files = model(vec![(UNET, tensors(list))]);
        let weights = Weights::open(&files, "unet", None).unwrap();
        let error = weights.get("conv_in.weight", &[320, 4, 3, 3]).unwrap_err().to_string();
        assert!(error.contains("`conv_in.weight` is [320, 9, 3, 3], this model needs [320, 4, 3, 3]"), "{error}");
        assert!(error.contains("inpainting") && error.contains(UNET), "{error}");
        let error = weights.get("b", &[2, 2]).unwrap_err().to_string();
        assert!(error.contains("`b` is [4], this model needs [2, 2]") && !error.contains("try:"), "{error}");
        let error = weights.get("d", &[7]).unwrap_err().to_string();
        assert!(error.contains("loading unet: there is no `d` in m:unet/") && error.contains("[7]"), "{error}");
    }

    #[test]
    fn tensors_that_are_not_read_are_counted_and_the_first_is_named() {
        let names: Vec<String> = (0..20).map(|i| format!("x{i:02}")).collect();
        let mut list: Vec<(&str, &[usize])> = names.iter().map(|name| (name.as_str(), &[1][..])).collect();
        list.extend([("encoder.y", &[1][..]), ("text_model.embeddings.position_ids", &[1])]);
        let files = model(vec![(UNET, tensors(&list))]);
        let weights = Weights::open(&files, "unet", None).unwrap();
        weights.skip("encoder.");
        for name in &names[10..] {
            weights.get(name, &[1]).unwrap();
        }
        weights.finish().unwrap();
        assert_eq!(left_over(std::slice::from_ref(&weights)), Some((10, "x00")));
        for name in &names[..10] {
            weights.get(name, &[1]).unwrap();
        }
        assert_eq!(left_over(&[weights]), None);
    }

    #[test]
    fn doubles_are_rounded_to_f32() {
        let values = [1.0, 0.1, -1e-50, 1e300, 16_777_217.0, f64::from(f32::MIN_POSITIVE) / 3.0];
        let header = r#"{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},"b":{"dtype":"F64","shape":[5],"data_offsets":[8,48]}}"#;
        let mut file = safetensors::tests::file(header, 48);
        let data = file.len() - 48;
        file[data..].copy_from_slice(&values.map(f64::to_le_bytes).concat());
        let files = model(vec![(UNET, file)]);
        let weights = Weights::open(&files, "unet", None).unwrap();
        for (name, values) in [("a", &values[..1]), ("b", &values[1..])] {
            let stored = weights.get(name, &[values.len()]).unwrap();
            assert_eq!(stored.values().form().unwrap(), (DType::F32, 4 * values.len()));
            assert_eq!(stored.to_f32().unwrap(), values.iter().map(|value| *value as f32).collect::<Vec<_>>());
            for (i, value) in values.iter().enumerate() {
                let mut bytes = [0; 4];
                stored.values().read(4 * i, &mut bytes).unwrap();
                assert_eq!(f32::from_le_bytes(bytes), *value as f32);
            }
        }
    }

    #[test]
    fn types_that_are_no_floats_are_refused() {
        for dtype in ["I64", "U64", "F8_E8M0", "F8_E4M3FNUZ", "BOOL", "I8"] {
            let bytes = if dtype.ends_with("64") { 8 } else { 1 };
            let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,{bytes}]}}}}"#);
            let files = model(vec![(UNET, safetensors::tests::file(&header, bytes))]);
            let error = Weights::open(&files, "unet", None).unwrap().get("a", &[1]).unwrap_err().to_string();
            assert!(error.contains("`a` must be F64, F32, F16, BF16, F8_E4M3 or F8_E5M2"), "{error}");
            assert!(error.contains(&format!("found: {dtype}")), "{error}");
        }
    }

    #[test]
    fn shards_are_read_as_one_and_must_keep_their_index() {
        const INDEX: &str = "unet/diffusion_pytorch_model.safetensors.index.json";
        let open = |map: &str, second: &[(&str, &[usize])]| {
            let index = format!(r#"{{"weight_map": {{{map}}}}}"#).into_bytes();
            let files = model(vec![
                (INDEX, index),
                ("unet/1.safetensors", tensors(&[("a", &[1])])),
                ("unet/2.safetensors", tensors(second)),
            ]);
            Weights::open(&files, "unet", None)
        };
        let weights = open(r#""a": "1.safetensors", "b": "2.safetensors""#, &[("b", &[2])]).unwrap();
        weights.get("a", &[1]).unwrap();
        weights.get("b", &[2]).unwrap();
        weights.finish().unwrap();

        let error = open(r#""a": "2.safetensors", "b": "2.safetensors", "c": "1.safetensors""#, &[("b", &[2])]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("loading unet: the index says that `a` is in m:unet/2.safetensors"), "{error}");
        let error = open(r#""a": "1.safetensors", "b": "2.safetensors""#, &[("a", &[1])]).unwrap_err().to_string();
        assert!(error.contains("`a` is stored twice"), "{error}");
        let error = open(r#""a": "1.safetensors", "b": "3.safetensors""#, &[]).unwrap_err().to_string();
        assert!(error.contains("m:unet/3.safetensors"), "{error}");
    }

    #[test]
    fn old_vae_attention_is_read_by_its_new_name() {
        let list: &[(&str, &[usize])] = &[
            ("decoder.mid_block.attentions.0.query.weight", &[4, 4, 1, 1]),
            ("decoder.mid_block.attentions.0.proj_attn.weight", &[4, 4]),
        ];
        let files = model(vec![("vae/diffusion_pytorch_model.safetensors", tensors(list))]);
        let weights = Weights::open(&files, "vae", None).unwrap();
        weights.get("decoder.mid_block.attentions.0.to_q.weight", &[4, 4]).unwrap();
        weights.get("decoder.mid_block.attentions.0.to_out.0.weight", &[4, 4]).unwrap();
        weights.finish().unwrap();
    }

    #[test]
    fn a_variant_must_exist_somewhere() {
        let files = model(vec![
            (UNET, tensors(&[])),
            ("vae/diffusion_pytorch_model.fp16.safetensors", tensors(&[])),
            ("vae/diffusion_pytorch_model.safetensors", tensors(&[])),
        ]);
        assert_eq!(without_variant(&files, &["unet", "vae"], "fp16").unwrap(), ["unet"]);
        let error = without_variant(&files, &["unet", "vae"], "fp61").unwrap_err().to_string();
        assert!(error.contains("no files of the variant \"fp61\""), "{error}");
        assert!(Weights::open(&files, "vae", Some("fp16")).unwrap().is_variant());
        assert!(!Weights::open(&files, "unet", Some("fp16")).unwrap().is_variant());
    }

    #[test]
    fn a_text_encoder_of_open_clip_is_read_in_transformers_form() {
        let prefix = "conditioner.embedders.1.model";
        let floats = |count: usize| (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect::<Vec<u8>>();
        let (mut header, mut data) = (Vec::new(), Vec::new());
        for (name, shape) in [
            ("token_embedding.weight", "[1,2]"),
            ("transformer.resblocks.0.attn.in_proj_weight", "[6,2]"),
            ("transformer.resblocks.0.attn.in_proj_bias", "[6]"),
            ("text_projection", "[2,3]"),
        ] {
            let sizes: Vec<usize> = serde_json::from_str(shape).unwrap();
            let (start, values) = (data.len(), floats(sizes.iter().product()));
            data.extend(values);
            let end = data.len();
            header
                .push(format!(r#""{prefix}.{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#));
        }
        let mut file = safetensors::tests::file(&format!("{{{}}}", header.join(",")), 0);
        file.extend(&data);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, file).unwrap();
        let files = ModelFiles::single_file(&path);
        let read = Arc::new(Mutex::new(Vec::new()));
        let log = read.clone();
        let observer = Observer(Arc::new(move |loading: Loading| {
            log.lock().unwrap().push((loading.done_bytes, loading.total_bytes));
            Ok(())
        }));
        let weights = Weights::open(&files, "text_encoder_2", None).unwrap().observed(Some(observer));
        for (name, shape, want) in [
            ("encoder.layers.0.self_attn.q_proj.weight", &[2, 2][..], &[0.0, 1.0, 2.0, 3.0][..]),
            ("encoder.layers.0.self_attn.k_proj.weight", &[2, 2], &[4.0, 5.0, 6.0, 7.0]),
            ("encoder.layers.0.self_attn.v_proj.weight", &[2, 2], &[8.0, 9.0, 10.0, 11.0]),
            ("encoder.layers.0.self_attn.v_proj.bias", &[2], &[4.0, 5.0]),
            ("text_projection.weight", &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]),
        ] {
            assert_eq!(weights.get(name, shape).unwrap().to_f32().unwrap(), want, "{name}");
        }
        // Thirds of 48 bytes, one of 24 and 24 bytes, of 48 + 24 + 24 and the 8 that are not read.
        assert_eq!(*read.lock().unwrap(), [(0, 104), (16, 104), (32, 104), (48, 104), (56, 104)]);
        for (name, shape, words) in [
            ("encoder.layers.0.self_attn.q_proj.weight", &[3, 2][..], "needs of each third [3, 2]"),
            ("text_projection.weight", &[2, 3], "needs of the transposed tensor [2, 3]"),
            (
                "encoder.layers.1.mlp.fc1.bias",
                &[2],
                "`conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_fc.bias`",
            ),
        ] {
            let error = weights.get(name, shape).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let error = Weights::open(&files, "vae", None).unwrap_err().to_string();
        assert!(error.contains("x.safetensors") && error.contains("has no vae") && error.contains("--vae"), "{error}");
    }

    #[test]
    fn the_built_in_model_opens() {
        let files = ModelFiles::folder(concat!(env!("CARGO_MANIFEST_DIR"), "/models/emoji")).unwrap();
        let open = |component| Weights::open(&files, component, None).unwrap();
        let (text_encoder, unet, vae) = (open("text_encoder"), open("unet"), open("vae"));
        text_encoder.get("encoder.layers.1.self_attn.q_proj.weight", &[192, 192]).unwrap();
        unet.get("conv_in.weight", &[64, 4, 3, 3]).unwrap();
        vae.get("decoder.mid_block.attentions.0.to_out.0.weight", &[128, 128]).unwrap();
    }

    #[test]
    fn plans_have_every_shape() {
        let weights = Weights::shapes_only("unet");
        assert!(matches!(weights.get("anything", &[1 << 40]).unwrap().values(), Values::ShapeOnly));
        weights.finish().unwrap();
    }

    #[test]
    fn fnv_gives_the_known_answer_of_its_authors() {
        let mut hash = Fnv::new();
        hash.write(b"foobar");
        assert_eq!(hash.0, 0x8594_4171_f739_67e8);
    }
}
