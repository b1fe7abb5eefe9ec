//! Named tensors on disk: finding their files, translating their names, and checking that each is read once in the
//! right shape.

mod download;
mod embedding;
pub mod files;
#[cfg(feature = "hub")]
pub mod hub;
mod identity;
mod index;
pub mod lora;
mod names;
mod offload;
mod safetensors;
mod scope;
mod tensor_file;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use ::safetensors::Dtype;
pub use download::{Download, ModelLayout, Wanted, is_hub_id};
pub use embedding::{Embedding, Vectors};
pub use files::ModelFiles;
pub use identity::identity;
pub use offload::{Ahead, Offload};
pub use scope::{OffloadBuilder, Packed, Scope};
use serde::Serialize;
pub use tensor_file::TensorFile;

use crate::{
    backend::{DType, Values},
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
    /// The names of tensors that were read or declared unused.
    seen: Mutex<HashSet<String>>,
    observer: Option<Observer>,
    /// Whether every tensor is checked, and none has values.
    headers_only: bool,
    /// The bytes that were read and the total bytes, from the first tensor on.
    progress: Mutex<Option<(usize, usize)>>,
}

#[derive(Debug)]
struct Stored {
    files: Vec<safetensors::File>,
    /// The file and the index in it of each tensor, by the tensor's current name.
    places: HashMap<String, (usize, usize)>,
    is_variant: bool,
}

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
        let (seen, progress) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { component, stored, seen, observer, headers_only, progress }))
    }

    /// Sets the observer of the reading. Nothing may have been read before.
    #[must_use]
    pub fn observed(self, observer: Option<Observer>) -> Self {
        let inner = Arc::into_inner(self.0).expect("weights that were just opened have no clones");
        Self(Arc::new(Inner { observer, ..inner }))
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
        self.0.stored.as_ref().is_none_or(|stored| stored.places.contains_key(name))
    }

    /// The tensor `name`, which must have this shape. Names are the reference's current ones, without `text_model.`.
    ///
    /// F64 tensors are rounded to f32, as in the reference. Fails if the tensor is missing, has another shape, or has
    /// another type than F64, F32, F16 or BF16.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Values<'_>> {
        let Some(stored) = &self.0.stored else { return Ok(Values::ShapeOnly) };
        let is_new = self.mark(name);
        let doing = |what: String| Error::input(format!("loading {}: {what}", self.0.component));
        let Some((file, tensor)) = stored.find(name) else {
            let files: Vec<&str> = stored.files.iter().map(|file| file.path.as_str()).collect();
            return Err(doing(format!(
                "there is no `{name}` in {}, this model needs one of {shape:?}",
                files.join(", ")
            )));
        };
        if !names::shape_fits(name, &tensor.shape, shape) {
            let error = doing(format!("`{}` is {:?}, this model needs {shape:?}", tensor.name, tensor.shape))
                .found(format!("that shape in {}", file.path));
            return Err(match (name, tensor.shape.get(1)) {
                ("conv_in.weight", Some(9)) => {
                    error.hint("nine input channels is an inpainting checkpoint, which sdshard does not run")
                }
                ("conv_in.weight", Some(8)) => {
                    error.hint("eight input channels is an image-editing checkpoint, which sdshard does not run")
                }
                _ => error,
            });
        }
        let dtype = match tensor.dtype {
            Dtype::F32 | Dtype::F64 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(doing(format!("`{}` must be F64, F32, F16 or BF16", tensor.name))
                    .found(format!("{other} in {}", file.path)));
            }
        };
        if self.0.headers_only {
            return Ok(Values::ShapeOnly);
        }
        if is_new {
            self.notify_observer(stored, tensor.bytes())?;
        }
        Ok(file.values(tensor, dtype))
    }

    /// Declares that all tensors with the given prefix are not read on purpose, for example a VAE's encoder.
    pub fn skip(&self, prefix: &str) {
        let names = self.0.stored.iter().flat_map(|stored| stored.places.keys());
        names.filter(|name| name.starts_with(prefix)).for_each(|name| {
            self.mark(name);
        });
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

    /// The number of stored tensors that were neither read nor skipped, and the first of their names in the file.
    /// diffusers and transformers ignore such tensors: those of an adapter, or of layers beyond the number in the
    /// config.
    pub fn left_over(&self) -> Option<(usize, &str)> {
        let stored = self.0.stored.as_ref()?;
        let seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_left = |name: &&String| !seen.contains(*name) && !names::is_ignorable(name);
        let count = stored.places.keys().filter(is_left).count();
        let (_, tensor) = stored.find(stored.places.keys().filter(is_left).min()?)?;
        Some((count, &tensor.name))
    }

    /// Fails if one of the files was changed since it was opened: a mixture of both versions may have been read.
    pub fn check_unchanged(&self) -> Result<()> {
        self.0.stored.iter().flat_map(|stored| &stored.files).try_for_each(safetensors::File::check_unchanged)
    }

    /// Records that a tensor is used; false if it was used before.
    fn mark(&self, name: &str) -> bool {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned())
    }

    /// Calls the observer before a tensor of `bytes` is read.
    fn notify_observer(&self, stored: &Stored, bytes: usize) -> Result<()> {
        let Some(observer) = &self.0.observer else { return Ok(()) };
        let (done_bytes, total_bytes) = {
            let mut progress = self.0.progress.lock().unwrap_or_else(PoisonError::into_inner);
            let (done, _) = progress.get_or_insert_with(|| {
                let seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
                let open = stored.places.iter().filter(|(name, _)| !seen.contains(*name));
                let size = |&(file, tensor): &(usize, usize)| stored.files[file].tensors[tensor].bytes();
                (0, bytes + open.map(|(_, place)| size(place)).sum::<usize>())
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
        let mut places = HashMap::new();
        for (file_index, file) in opened.iter().enumerate() {
            for (tensor_index, tensor) in file.tensors.iter().enumerate() {
                let name = names::modern(&tensor.name).into_owned();
                if let Some((other, _)) = places.insert(name, (file_index, tensor_index)) {
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
        Ok(Self { files: opened, places, is_variant: sources.is_variant })
    }

    fn find(&self, name: &str) -> Option<(&safetensors::File, &safetensors::Tensor)> {
        let &(file, tensor) = self.places.get(name)?;
        Some((&self.files[file], &self.files[file].tensors[tensor]))
    }
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
        let Values::Data { dtype, bytes } = weights.get("a.weight", &[2, 3]).unwrap() else { panic!() };
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
        assert_eq!(weights.left_over(), Some((10, "x00")));
        for name in &names[..10] {
            weights.get(name, &[1]).unwrap();
        }
        assert_eq!(weights.left_over(), None);
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
            assert_eq!(stored.form().unwrap(), (DType::F32, 4 * values.len()));
            for (i, value) in values.iter().enumerate() {
                let mut bytes = [0; 4];
                stored.read(4 * i, &mut bytes).unwrap();
                assert_eq!(f32::from_le_bytes(bytes), *value as f32);
            }
        }
    }

    #[test]
    fn types_that_are_no_floats_are_refused() {
        for dtype in ["I64", "U64", "F8_E4M3", "F8_E5M2", "BOOL", "I8"] {
            let bytes = if dtype.ends_with("64") { 8 } else { 1 };
            let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,{bytes}]}}}}"#);
            let files = model(vec![(UNET, safetensors::tests::file(&header, bytes))]);
            let error = Weights::open(&files, "unet", None).unwrap().get("a", &[1]).unwrap_err().to_string();
            assert!(error.contains("`a` must be F64, F32, F16 or BF16"), "{error}");
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
        assert!(matches!(weights.get("anything", &[1 << 40]).unwrap(), Values::ShapeOnly));
        weights.finish().unwrap();
    }

    #[test]
    fn fnv_gives_the_known_answer_of_its_authors() {
        let mut hash = Fnv::new();
        hash.write(b"foobar");
        assert_eq!(hash.0, 0x8594_4171_f739_67e8);
    }
}
