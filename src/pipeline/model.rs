//! A model before its weights are loaded: its files, its configs and its tokenizer; and loading its networks.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    hashes::Hashes,
    parts::{Instance, Parts, Placed},
    placement::{Place, Sections},
    request::Request,
    texts::Text,
};
use crate::{
    backend::{Device, DeviceId, Precision, Rates, rules::Rules},
    error::{Error, Result},
    models::{
        component::{ComponentId, Stage},
        network::NetworkSpec,
        route::Route,
        spec::{ComponentSpec, ModelSpec},
    },
    prompt::{PromptSyntax, PromptTokenizer, TokenizedPrompt},
    tokenizer::{self, Tokenizer},
    weights::{
        self, Ahead, Embedding, EmbeddingChoice, ModelFiles, NewTokens, Observer, OffloadBuilder, Packed, Reside,
        Scope, UnetBlocks, Weights,
        files::MODEL_INDEX,
        lora::{Adapters, Changeable, Target},
    },
};

/// A checkpoint whose configs have been read and whose weights have not.
pub struct Model {
    /// The model's files.
    pub files: ModelFiles,
    /// The contents of its configs.
    pub spec: ModelSpec,
    /// Convert texts to token ids, one for each text encoder.
    pub tokenizers: Vec<Arc<Tokenizer>>,
    /// The same for prompts in each syntax: plain text, and that of web UIs.
    prompts: Vec<[PromptTokenizer; 2]>,
    /// The variant of the weights to read, for example `fp16`.
    pub variant: Option<String>,
    /// Receives the progress of reading weights.
    pub observer: Option<Observer>,
    /// The LoRAs.
    adapters: Arc<Adapters>,
    /// The vectors of textual inversions, for each text encoder.
    new_tokens: Vec<Option<Arc<NewTokens>>>,
    /// The number of vectors of each textual inversion.
    vector_counts: Vec<usize>,
    /// [`Model::hashes`], once they have been computed.
    hashes: Mutex<Option<Arc<Hashes>>>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("name", &self.files.name()).finish_non_exhaustive()
    }
}

impl Model {
    /// Reads the configs, the tokenizer and the headers of the weights.
    ///
    /// # Errors
    /// If a file is missing, invalid, or needs something that this program does not support, the tokenizer has more
    /// tokens than the text encoder, or the weights do not match the configs: see [`check_weights`].
    pub fn open(files: ModelFiles, variant: Option<String>) -> Result<Self> {
        Self::without_weights(files, variant)?.checked()
    }

    /// As [`Model::open`], with the encoder of the VAE as a component, which requests that start from a picture need.
    /// An inpainting model always has it.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_for_images(files: ModelFiles, variant: Option<String>) -> Result<Self> {
        let model = Self::without_weights(files, variant)?;
        Self { spec: model.spec.with_image_encoder(), ..model }.checked()
    }

    fn checked(self) -> Result<Self> {
        let adapters = check_weights(&self.files, &self.spec, self.variant.as_deref(), |_| true)?;
        Ok(Self { adapters: Arc::new(adapters), ..self })
    }

    /// As [`Model::open`], for a model whose weights need not exist yet.
    ///
    /// # Errors
    /// As [`Model::open`], except for the weights.
    pub fn without_weights(files: ModelFiles, variant: Option<String>) -> Result<Self> {
        let mut spec = ModelSpec::load(&files)?;
        let embeddings = files.embeddings().iter().map(|choice| Embedding::read(&choice.path));
        let embeddings = embeddings.collect::<Result<Vec<_>>>()?;
        let (mut tokenizers, mut prompts, mut new_tokens) = (Vec::new(), Vec::new(), Vec::new());
        for (folder, text) in spec.tokenizers().zip(spec.texts()) {
            let tokenizer = Tokenizer::load(&files, &folder, text.tokens)?;
            let (rows, largest) = (text.vocab_size, tokenizer.largest_id() as usize);
            if largest >= rows {
                return Err(Error::input(format!(
                    "the parts of the model {} do not fit together: vocab_size of the text encoder must be {} at \
                     least, so that every token of the {folder} has a row",
                    files.name(),
                    largest + 1
                ))
                .found(rows.to_string()));
            }
            tokenizers.push(Arc::new(tokenizer));
        }
        let encoders: Vec<ComponentId> = spec.in_stage(Stage::Encode).collect();
        let wanted = text_encoders(&spec);
        let vectors = embeddings.iter().map(|embedding| embedding.for_encoders(&wanted));
        let vectors = vectors.collect::<Result<Vec<_>>>()?;
        let vector_counts: Vec<usize> = vectors.iter().map(|vectors| vectors[0].count).collect();
        for (index, (encoder, tokenizer)) in encoders.into_iter().zip(&tokenizers).enumerate() {
            let own = || vectors.iter().map(|vectors| vectors[index]);
            let in_syntax = |syntax| {
                let named = files.embeddings().iter().zip(&embeddings).zip(own());
                let named =
                    named.map(|((choice, embedding), vectors)| (name(choice, embedding, syntax), vectors.count));
                PromptTokenizer::new(tokenizer, syntax, &named.collect::<Vec<_>>())
            };
            let plain = in_syntax(PromptSyntax::Plain)?;
            if index == 0 {
                warn_of_capitals(&files, &embeddings, &vector_counts);
            }
            let (first_id, count) = (plain.first_id() as usize, vector_counts.iter().sum::<usize>());
            let vectors: Vec<f32> = own().flat_map(|vectors| vectors.values).copied().collect();
            new_tokens.push((count > 0).then(|| Arc::new(NewTokens { first_id, vectors })));
            if let (true, NetworkSpec::Clip(clip)) = (count > 0, &mut spec.components[encoder].network) {
                clip.extended_size = Some(first_id + count);
            }
            prompts.push([plain, in_syntax(PromptSyntax::A1111)?]);
        }
        Ok(Self {
            files,
            spec,
            tokenizers,
            prompts,
            new_tokens,
            vector_counts,
            variant,
            observer: None,
            adapters: Arc::default(),
            hashes: Mutex::default(),
        })
    }

    /// Checks that a textual inversion can be used with this model.
    ///
    /// # Errors
    /// If it cannot be read, is for other text encoders, has more vectors than a text has tokens, or if the model has a
    /// token of its name.
    pub fn check_embedding(&self, choice: &EmbeddingChoice) -> Result<()> {
        let embedding = Embedding::read(&choice.path)?;
        let vectors = embedding.for_encoders(&text_encoders(&self.spec))?;
        for (tokenizer, vectors) in self.tokenizers.iter().zip(vectors) {
            for syntax in [PromptSyntax::Plain, PromptSyntax::A1111] {
                PromptTokenizer::new(tokenizer, syntax, &[(name(choice, &embedding, syntax), vectors.count)])?;
            }
        }
        Ok(())
    }

    /// The input of the text encoder with this index, for a text without tags.
    ///
    /// # Errors
    /// If its syntax is invalid, or it is longer than 32 chunks.
    pub fn tokenize(&self, encoder: usize, text: &str, syntax: PromptSyntax) -> Result<TokenizedPrompt> {
        let [plain, a1111] = &self.prompts[encoder];
        match syntax {
            PromptSyntax::Plain => plain.encode(text),
            PromptSyntax::A1111 => a1111.encode(text),
        }
    }

    /// The number of chunks that the longest text of a request needs in any text encoder, for [`Request::chunks`]: 1
    /// for plain text, which is cut off.
    ///
    /// # Errors
    /// As [`Model::tokenize`].
    pub fn chunks(&self, request: &Request) -> Result<usize> {
        let texts = self.texts(request);
        let mut most = 1;
        for text in texts.iter().filter(|text| text.syntax != PromptSyntax::Plain) {
            for encoder in 0..self.prompts.len() {
                most = most.max(self.tokenize(encoder, text.of(encoder), text.syntax)?.chunks.len());
            }
        }
        Ok(most)
    }

    /// The indices of the textual inversions that are in the texts of a request.
    ///
    /// # Errors
    /// As [`Model::tokenize`].
    pub fn embeddings_of(&self, request: &Request) -> Result<Vec<usize>> {
        if self.vector_counts.is_empty() {
            return Ok(Vec::new());
        }
        let mut ids = HashSet::new();
        for text in self.texts(request) {
            for (encoder, [plain, _]) in self.prompts.iter().enumerate() {
                let chunks = self.tokenize(encoder, text.of(encoder), text.syntax)?.chunks;
                ids.extend(
                    chunks.iter().flat_map(|chunk| &chunk.ids).filter_map(|id| id.checked_sub(plain.first_id())),
                );
            }
        }
        let mut first = 0;
        let is_used = |(_, count): &(usize, &usize)| {
            let own = first..first + **count as u32;
            first = own.end;
            ids.iter().any(|id| own.contains(id))
        };
        Ok(self.vector_counts.iter().enumerate().filter(is_used).map(|(index, _)| index).collect())
    }

    /// The texts of a request that are encoded. A negative prompt that is not used must not change the picture.
    fn texts(&self, request: &Request) -> Vec<Text> {
        let negative = request.negative_text(&self.spec).filter(|_| request.is_guided(&self.spec));
        [Some(request.text()), negative].into_iter().flatten().collect()
    }

    /// As [`Model::tokenize`], filled up to the chunks of `text`.
    pub(super) fn tokenized(&self, encoder: usize, text: &Text) -> Result<TokenizedPrompt> {
        let mut prompt = self.tokenize(encoder, text.of(encoder), text.syntax)?;
        if prompt.chunks.len() > text.chunks {
            return Err(Error::input("the request has no room for a text of this length")
                .found(format!("{} chunks; the request has {}", prompt.chunks.len(), text.chunks))
                .hint("Model::chunks counts the chunks that the texts of a request need"));
        }
        self.prompts[encoder][1].pad(&mut prompt, text.chunks);
        Ok(prompt)
    }

    /// A component's weights with checked headers; no tensor is read.
    ///
    /// # Errors
    /// If a file is missing or invalid.
    pub fn weights(&self, component: ComponentId) -> Result<Weights> {
        let folder = &self.spec.components[component].folder;
        let weights = Weights::open(&self.files, folder, self.variant.as_deref())?;
        let encoder = self.spec.in_stage(Stage::Encode).position(|encoder| encoder == component);
        let new_tokens = encoder.and_then(|index| self.new_tokens[index].clone());
        let weights = weights.with_new_tokens(new_tokens);
        Ok(weights.observed(self.observer.clone()).adapted(self.adapters.clone()))
    }

    /// Ten hexadecimal digits that identify this model: the [`weights::identity`] of everything that all of its
    /// pictures depend on, which is weights, also those of another VAE and of ControlNets, configs, tokenizers and
    /// LoRAs. Textual inversions are not part of it: a picture depends on those in its own texts.
    ///
    /// # Errors
    /// As [`Model::hashes`].
    pub fn identity(&self) -> Result<String> {
        Ok(self.hashes()?.model.clone())
    }

    /// The [`identity`](Model::identity), and the hashes of files that were added to the model. The first call waits
    /// until all files have been read; later calls get the stored result.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn hashes(&self) -> Result<Arc<Hashes>> {
        let mut known = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hashes) = &*known {
            return Ok(hashes.clone());
        }
        let mut paths = vec![MODEL_INDEX.to_owned(), "scheduler/scheduler_config.json".to_owned()];
        paths.extend(self.spec.tokenizers().flat_map(|folder| tokenizer::paths(&self.files, &folder)));
        // The encoder of the VAE has the files of the decoder, so a model is the same one with it and without it.
        let has_files = |(_, component): &(ComponentId, &ComponentSpec)| component.stage() != Stage::EncodeImage;
        for (id, component) in self.spec.components.iter().filter(has_files) {
            self.weights(id)?; // an invalid file is reported before gigabytes are read
            paths.push(format!("{}/config.json", component.folder));
            let sources = weights::sources(&self.files, &component.folder, self.variant.as_deref())?;
            paths.extend(sources.into_iter().filter(|path| !paths.contains(path)).collect::<Vec<_>>());
        }
        if let Some(file) = self.files.sole_file() {
            paths = vec![file];
        }
        let identity = weights::identity(&self.files, &paths)?;
        let mut changes = self.adapters.identity();
        if self.files.is_averaged() {
            changes += "averages\n";
        }
        let identity = if changes.is_empty() { identity } else { weights::digits(&format!("{identity}\n{changes}")) };
        let hashes = Arc::new(Hashes::read(identity, &self.files, &self.spec)?);
        *known = Some(hashes.clone());
        Ok(hashes)
    }

    /// Starts to compute the [`hashes`](Model::hashes) in a thread, so that they are known when the first picture is
    /// done.
    pub fn identify_in_background(self: &Arc<Self>) {
        let model = self.clone();
        let thread = std::thread::Builder::new().name("identity".to_owned());
        // Without a thread, or if a file cannot be read, the next caller does the work or gets the error.
        let _ = thread.spawn(move || model.hashes().map_err(|error| tracing::debug!("{error}")));
    }
}

/// The names of a model's text encoders, and the widths of their features.
fn text_encoders(spec: &ModelSpec) -> Vec<(&str, usize)> {
    let names = spec.in_stage(Stage::Encode).map(|encoder| spec.components[encoder].name.as_str());
    names.zip(spec.texts().map(|text| text.width)).collect()
}

/// The name of a textual inversion in prompts.
fn name<'a>(choice: &'a EmbeddingChoice, embedding: &'a Embedding, syntax: PromptSyntax) -> &'a str {
    let own = || if syntax == PromptSyntax::Plain { embedding.token() } else { embedding.stem() };
    choice.token.as_deref().unwrap_or_else(own)
}

/// Warns of textual inversions of which plain prompts use only the first vector, as in diffusers.
fn warn_of_capitals(files: &ModelFiles, embeddings: &[Embedding], counts: &[usize]) {
    for ((choice, embedding), count) in files.embeddings().iter().zip(embeddings).zip(counts) {
        let name = name(choice, embedding, PromptSyntax::Plain);
        if *count > 1 && name.to_lowercase() != name {
            tracing::warn!(
                "the embedding {name:?}: only the first of its {count} vectors is used in plain prompts, as in \
                 diffusers, because its name has capital letters"
            );
        }
    }
}

/// Reads weights, each network once for each set of memories that it is spread over: devices share weights if they can.
pub struct Loader<'a> {
    model: &'a Model,
    packed: Packed,
    /// The loaded networks, by component, place of the weights, and the memory of each section's weights.
    networks: HashMap<(ComponentId, Reside, Vec<String>), Placed>,
}

impl<'a> Loader<'a> {
    /// A loader for one model.
    pub fn new(model: &'a Model) -> Self {
        Self { model, packed: Packed::default(), networks: HashMap::new() }
    }

    /// Reuses these networks, so that those whose weights stay in the same memory are not read again.
    pub fn reuse_networks(&mut self, parts: &Parts) {
        for (component, instances) in parts.iter() {
            for network in instances.iter().flat_map(Instance::networks).filter(|network| network.offload.is_none()) {
                self.networks.insert(key(component, &network.route, Reside::Device), network.clone());
            }
        }
    }

    /// Loads a component for one of its places; `route` returns the devices of a place's sections.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or a device has no room.
    pub fn instance(
        &mut self,
        component: ComponentId,
        place: &Place<DeviceId>,
        route: impl Fn(&[DeviceId]) -> Route,
    ) -> Result<Instance> {
        let mut network = |sections: &Sections<DeviceId>| self.network(component, route(sections), sections.reside);
        Ok(match place {
            Place::Route(sections) => network(sections)?.into(),
            Place::Guided { negative, positive } => {
                Instance { negative: Some(network(negative)?), positive: network(positive)? }
            }
        })
    }

    /// A component's network for a route: an existing one, if its weights are in the memory that this route needs, or
    /// one that is read now. On devices without data no values are read.
    fn network(&mut self, component: ComponentId, route: Route, reside: Reside) -> Result<Placed> {
        let key = key(component, &route, reside);
        if let Some(known) = self.networks.get(&key) {
            return Ok(Placed { route, ..known.clone() });
        }
        let spec = &self.model.spec.components[component];
        let has_data = route.iter().any(Device::has_data);
        let weights = match has_data {
            true => self.model.weights(component)?,
            false => Weights::shapes_only(&spec.folder),
        };
        let ahead = if has_data { Ahead::Thread } else { Ahead::Caller };
        let loaded = load(spec, weights, &Source { route, reside, packed: self.packed.clone(), ahead })?;
        self.networks.insert(key, loaded.clone());
        Ok(loaded)
    }
}

/// The memory and precision of each section's weights. Offloaded weights are fetched to one device, so they are shared only
/// by networks on the same device.
fn key(component: ComponentId, route: &Route, reside: Reside) -> (ComponentId, Reside, Vec<String>) {
    let home = |(device, precision): (&Device, Precision)| match reside {
        Reside::Device => format!("{precision} in {}", device.weight_home()),
        Reside::Host | Reside::Disk => format!("{precision} on {}", device.id()),
    };
    (component, reside, route.typed().map(home).collect())
}

/// Where a network is loaded to, and where its weights are kept.
pub struct Source {
    /// A device for each section.
    pub route: Route,
    /// Where the weights are kept.
    pub reside: Reside,
    /// The weights that are already packed.
    pub packed: Packed,
    /// The thread that prefetches offloaded weights.
    pub ahead: Ahead,
}

impl Source {
    /// A source for weights that stay on their devices.
    pub fn resident(route: Route) -> Self {
        Self { route, reside: Reside::Device, packed: Packed::default(), ahead: Ahead::Thread }
    }
}

/// Loads a component's network.
///
/// # Errors
/// If a tensor is missing or has another shape, or a device has no room.
pub fn load(component: &ComponentSpec, weights: Weights, source: &Source) -> Result<Placed> {
    component.network.not_run().iter().for_each(|prefix| weights.skip(prefix));
    let (route, count) = (source.route.clone(), source.route.iter().count());
    let builder = OffloadBuilder::new(source.reside, count, source.packed.clone());
    let scope = Scope::new(&weights, route.first(), route.precision(0)).with_offload(&builder);
    let network = Arc::new(component.network.load(&scope, &route)?);
    weights.finish()?;
    let offload = builder.build(source.ahead).map(Arc::new);
    Ok(Placed { name: component.name.as_str().into(), network, offload, route })
}

/// Compares the headers of the weights with the configs, by the code that loads them later. Stored tensors that no
/// network uses are counted in one warning for each component, or for all that share a file; the reference ignores them
/// too. Components whose folders are not `wanted` have weights that need not exist.
///
/// # Errors
/// If a file of weights is missing or invalid, or a tensor is missing, or has another shape or a type that is not a
/// float; or if a LoRA is not for this model.
pub fn check_weights(
    files: &ModelFiles,
    spec: &ModelSpec,
    variant: Option<&str>,
    wanted: impl Fn(&str) -> bool,
) -> Result<Adapters> {
    let rates = Rates { flops: 1.0, bandwidth: 1.0, link: 1.0 };
    let (device, _) = Device::dry(DeviceId::CPU, Rules::Gpu(Precision::F32), rates);
    let mut all = Vec::new();
    for (_, component) in spec.components.iter() {
        let weights = match wanted(&component.folder) {
            true => Weights::open(files, &component.folder, variant)?.headers_only(),
            false => Weights::shapes_only(&component.folder),
        };
        let sections = component.network.sections().len();
        load(component, weights.clone(), &Source::resident(Route::whole(&device, Precision::F32, sections)))?;
        all.push(weights);
    }
    for group in all.chunk_by(Weights::shares_files_with) {
        if let Some((count, first)) = weights::left_over(group) {
            let first: String = first.chars().take(120).collect();
            let (name, parts) = (files.name(), group.iter().map(Weights::component).collect::<Vec<_>>().join(", "));
            tracing::warn!(
                "the model {name}: {parts} has {count} stored tensors that its config.json has no place for, and they \
                 are ignored; the first is {first:?}"
            );
        }
    }
    open_loras(files, spec, &all)
}

/// Finds the modules of the LoRAs among those that the networks of `opened` have read.
fn open_loras(files: &ModelFiles, spec: &ModelSpec, opened: &[Weights]) -> Result<Adapters> {
    let (loras, lenient) = files.loras();
    if loras.is_empty() {
        return Ok(Adapters::default());
    }
    let mut blocks = None;
    let mut networks = Vec::new();
    for ((_, component), weights) in spec.components.iter().zip(opened) {
        let target = match &component.network {
            NetworkSpec::Clip(_) => Target::TextEncoder(usize::from(component.name.ends_with("_2"))),
            NetworkSpec::Unet(unet) => {
                let (layers_per_block, up_attention) = (unet.layers_per_block, unet.up_attention.clone());
                blocks = Some(UnetBlocks { layers_per_block, up_attention });
                Target::Unet
            }
            NetworkSpec::ControlNet(_) | NetworkSpec::VaeEncoder(_) | NetworkSpec::VaeDecoder(_) => continue,
        };
        networks.push(Changeable { component: &component.folder, target, modules: weights.modules() });
    }
    Adapters::open(loras, lenient, &networks, |name| blocks.as_ref()?.ldm_name(name), weights::file_hash)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn a_model_is_another_one_where_weights_variant_tokenizer_or_configs_differ() {
        const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
        let tiny = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny-sd1"));
        let folder = tempfile::tempdir().unwrap();
        let copy = |path: &str| {
            let to = folder.path().join(path);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(tiny.join(path), to).unwrap();
        };
        let weights = [UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"];
        let texts = [
            MODEL_INDEX,
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "unet/config.json",
            "vae/config.json",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            "tokenizer/tokenizer_config.json",
            "tokenizer/special_tokens_map.json",
        ];
        weights.iter().chain(&texts).for_each(|path| copy(path));
        let open = |variant: Option<&str>| {
            Model::open(ModelFiles::folder(folder.path()).unwrap(), variant.map(str::to_owned)).unwrap()
        };
        let identity = |variant| open(variant).identity().unwrap();
        let first = identity(None);
        let with_encoder = Model::open_for_images(ModelFiles::folder(folder.path()).unwrap(), None).unwrap();
        assert_eq!(with_encoder.identity().unwrap(), first);
        for path in weights.iter().chain(&texts) {
            let file = folder.path().join(path);
            let mut bytes = fs::read(&file).unwrap();
            match bytes.last_mut() {
                Some(last) if path.ends_with(".safetensors") => *last ^= 1,
                _ => bytes.push(b'\n'),
            }
            fs::write(&file, bytes).unwrap();
            assert_ne!(identity(None), first, "{path}");
            copy(path);
        }
        assert_eq!(identity(None), first, "the same content at another time");

        // A file that is not read changes nothing; the file of a variant does, if the variant is requested.
        let mut other = fs::read(folder.path().join(UNET)).unwrap();
        *other.last_mut().unwrap() ^= 1;
        fs::write(folder.path().join("unet/diffusion_pytorch_model.fp16.safetensors"), other).unwrap();
        assert_eq!(identity(None), first);
        assert_ne!(identity(Some("fp16")), first);
        fs::write(folder.path().join("tokenizer/added_tokens.json"), "{}").unwrap();
        assert_ne!(identity(None), first);

        // The identity is computed once.
        let model = Arc::new(open(None));
        model.identify_in_background();
        let known = model.identity().unwrap();
        fs::remove_file(folder.path().join(UNET)).unwrap();
        assert_eq!(model.identity().unwrap(), known);
        assert!(Model::open(ModelFiles::folder(folder.path()).unwrap(), None).is_err());
    }
}
