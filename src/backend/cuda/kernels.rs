//! The kernels of `kernels/`, on a GPU: compiled at build time for its architecture, or else built in as PTX for an
//! older one, or else compiled by NVRTC once and cached on disk.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::{Arc, Once, PoisonError, RwLock},
};

use super::{
    driver::{self, Context, Function, Module, Properties},
    nvrtc,
};
use crate::{
    backend::rates,
    error::{Error, Result},
    output,
};

/// The source files of kernels: their names without the extension, and their texts.
pub const SOURCES: [(&str, &str); 8] = [
    ("linear", include_str!("../../../kernels/linear.cu")),
    ("conv2d", include_str!("../../../kernels/conv2d.cu")),
    ("split_k", include_str!("../../../kernels/split_k.cu")),
    ("attention", include_str!("../../../kernels/attention.cu")),
    ("group_norm", include_str!("../../../kernels/group_norm.cu")),
    ("layer_norm", include_str!("../../../kernels/layer_norm.cu")),
    ("elementwise", include_str!("../../../kernels/elementwise.cu")),
    ("layout", include_str!("../../../kernels/layout.cu")),
];

/// The headers that they include.
pub const HEADERS: [(&str, &str); 3] = [
    ("common.cuh", include_str!("../../../kernels/common.cuh")),
    ("ptx.cuh", include_str!("../../../kernels/ptx.cuh")),
    ("product.cuh", include_str!("../../../kernels/product.cuh")),
];

/// Source, architecture (`sm_89` for a cubin, `compute_70` for PTX) and contents of each built-in image.
static BUILT_IN: &[(&str, &str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/cuda_kernels.rs"));

/// The oldest architecture that the kernels support.
const OLDEST: u32 = 70;

/// The origin of a GPU's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Built in, compiled for the GPU's architecture.
    Cubin,
    /// Built in as PTX for this architecture.
    Ptx(u32),
    /// Compiled on this machine for this architecture.
    Nvrtc(u32),
}

impl Origin {
    /// The best origin for this GPU.
    ///
    /// # Errors
    /// If there is none, the error says what is missing and what to install.
    pub fn of(gpu: &Properties) -> Result<Self> {
        let has = |arch: &str| SOURCES.iter().all(|(source, _)| built_in(source, arch).is_some());
        let capability = gpu.capability;
        if has(&format!("sm_{capability}")) {
            return Ok(Self::Cubin);
        }
        if let Some(arch) = (OLDEST..=capability).rev().find(|arch| has(&format!("compute_{arch}"))) {
            return Ok(Self::Ptx(arch));
        }
        let refuse = |what: String| {
            Error::input(format!("{}: {what}", gpu.name))
                .hint("another device, such as \"cpu\" or \"wgpu:0\"; `sdshard devices` lists what can be used")
        };
        if capability < OLDEST {
            return Err(refuse(format!(
                "compute capability {}.{} is older than 7.0, which the kernels need",
                capability / 10,
                capability % 10
            )));
        }
        let known = nvrtc::architectures();
        match known.iter().filter(|&&arch| (OLDEST..=capability).contains(&arch)).max() {
            Some(&arch) => Ok(Self::Nvrtc(arch)),
            None if known.is_empty() => {
                Err(refuse("no kernels are built in, and there is no compiler for them".into()).hint(
                    "install NVRTC, a part of the CUDA toolkit 11.2 or later (libnvrtc, in the system's search path, \
                     CUDA_HOME or /usr/local/cuda), or a build of sdshard with SDSHARD_CUDA_KERNELS",
                ))
            }
            None => Err(refuse(format!("the NVRTC of this machine compiles for {known:?}, not for sm_{capability}"))
                .hint("an NVRTC of another version: 12 knows sm_70 to sm_120")),
        }
    }

    /// The architecture that the running code was compiled for. It determines which kernels exist and their arithmetic.
    pub fn arch(self, capability: u32) -> u32 {
        match self {
            Self::Cubin => capability,
            Self::Ptx(arch) | Self::Nvrtc(arch) => arch,
        }
    }
}

/// What GPU `index` runs on, for a report: the driver's CUDA version and the origin of its kernels. `None` if there is
/// no such GPU.
pub fn provenance(index: usize) -> Option<String> {
    let gpu = driver::gpus().ok()?.get(index)?;
    let kernels = match Origin::of(gpu) {
        Ok(Origin::Cubin) => format!("kernels built in for sm_{}", gpu.capability),
        Ok(Origin::Ptx(arch)) => format!("kernels built in as PTX for compute_{arch}"),
        Ok(Origin::Nvrtc(arch)) => {
            let (major, minor) = nvrtc::version().unwrap_or_default();
            format!("kernels compiled on this machine by NVRTC {major}.{minor} for compute_{arch}")
        }
        Err(error) => format!("no kernels: {error}"),
    };
    let cuda = driver::version();
    let driver = format!("driver of CUDA {}.{}", cuda / 1000, cuda % 1000 / 10);
    Some(format!("{driver}, {} multiprocessors, {kernels}", gpu.multiprocessors))
}

fn built_in(source: &str, arch: &str) -> Option<&'static [u8]> {
    BUILT_IN.iter().find(|(name, of, _)| (*name, *of) == (source, arch)).map(|(_, _, image)| *image)
}

/// The loaded kernels of one GPU.
pub struct Kernels {
    /// The result of [`Origin::arch`].
    pub arch: u32,
    modules: Vec<Arc<Module>>,
    functions: RwLock<HashMap<String, Function>>,
}

impl Kernels {
    /// Loads the kernels, and compiles those that are missing.
    ///
    /// # Errors
    /// If they can neither be found nor compiled, or the driver rejects them.
    pub fn load(context: &Arc<Context>) -> Result<Self> {
        let gpu = context.properties;
        let origin = Origin::of(gpu)?;
        let arch = origin.arch(gpu.capability);
        let images: Vec<Vec<u8>> = match origin {
            Origin::Cubin => images_of(|source| built_in(source, &format!("sm_{arch}")).map(<[u8]>::to_vec)),
            Origin::Ptx(_) => images_of(|source| {
                let mut text = built_in(source, &format!("compute_{arch}"))?.to_vec();
                text.push(0);
                Some(text)
            }),
            Origin::Nvrtc(_) => compiled(arch)?,
        };
        let load = |(image, (source, _)): (&Vec<u8>, &(&str, &str))| {
            context.load(image).map(Arc::new).map_err(|error| {
                error.context(format!("kernels/{source}.cu")).hint(format!(
                    "the driver, of CUDA {}.{}, may be older than what made the kernels: update it, or install an older \
                     NVRTC",
                    driver::version() / 1000,
                    driver::version() % 1000 / 10
                ))
            })
        };
        let modules = images.iter().zip(&SOURCES).map(load).collect::<Result<_>>()?;
        Ok(Self { arch, modules, functions: RwLock::default() })
    }

    /// The kernel with this name.
    ///
    /// # Errors
    /// If there is none: the image was built from other sources.
    pub fn get(&self, name: &str) -> Result<Function> {
        if let Some(function) = self.functions.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(function.clone());
        }
        for module in &self.modules {
            if let Some(function) = module.function(name)? {
                self.functions.write().unwrap_or_else(PoisonError::into_inner).insert(name.into(), function.clone());
                return Ok(function);
            }
        }
        Err(Error::process(format!("there is no kernel {name} for sm_{}", self.arch))
            .hint("SDSHARD_CUDA_KERNELS named kernels of another version when sdshard was built"))
    }
}

/// The image of each source; sources without an image are left out.
fn images_of(image: impl Fn(&str) -> Option<Vec<u8>>) -> Vec<Vec<u8>> {
    SOURCES.iter().map(|(source, _)| image(source).expect("`Origin::of` saw that all are there")).collect()
}

/// The PTX of every source, from the cache or compiled on as many threads as there are sources.
fn compiled(arch: u32) -> Result<Vec<Vec<u8>>> {
    let folder = rates::cache_folder().map(|folder| folder.join("kernels"));
    let results: Vec<Result<Vec<u8>, String>> = std::thread::scope(|scope| {
        let compile = |(name, source): &(&'static str, &'static str)| {
            let (name, source, folder) = (*name, *source, folder.as_deref());
            std::thread::Builder::new().spawn_scoped(scope, move || ptx(name, source, arch, folder))
        };
        let threads: Vec<_> = SOURCES.iter().map(compile).collect();
        let join = |thread: std::io::Result<std::thread::ScopedJoinHandle<Result<Vec<u8>, String>>>| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err("the compiler's thread panicked".into())),
            Err(error) => Err(format!("starting the compiler's thread: {error}")),
        };
        threads.into_iter().map(join).collect()
    });
    results.into_iter().collect::<Result<_, _>>().map_err(|words| {
        Error::process("the kernels cannot be compiled")
            .source(words)
            .hint("an NVRTC of CUDA 12 is what they are tested with")
    })
}

fn ptx(name: &str, source: &str, arch: u32, folder: Option<&Path>) -> Result<Vec<u8>, String> {
    let file = folder.map(|folder| folder.join(cache_name(name, source, arch)));
    if let Some(kept) =
        file.as_deref().and_then(|file| crate::input::read(file).ok()).filter(|kept| kept.ends_with(&[0]))
    {
        return Ok(kept);
    }
    static SAID: Once = Once::new();
    SAID.call_once(|| tracing::warn!("compiling the CUDA kernels for sm_{arch}, once: it takes up to a minute"));
    let ptx = nvrtc::compile(&format!("{name}.cu"), source, &HEADERS, arch)?;
    if let Some(file) = file
        && let Err(error) = output::write_cache(&file, &ptx)
    {
        tracing::debug!("{} cannot be written: {error}", file.display());
    }
    Ok(ptx)
}

/// The cache file, whose name is different for everything that the result depends on.
fn cache_name(name: &str, source: &str, arch: u32) -> PathBuf {
    let mut hash = DefaultHasher::new();
    (source, HEADERS, nvrtc::OPTIONS, nvrtc::version()).hash(&mut hash);
    format!("{name}.compute_{arch}.{:016x}.ptx", hash.finish()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_kernels_is_among_the_sources() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".cu") || name.ends_with(".cuh"))
            .collect();
        files.sort();
        let sources = SOURCES.iter().map(|(name, _)| format!("{name}.cu"));
        let mut known: Vec<String> = sources.chain(HEADERS.iter().map(|(name, _)| name.to_string())).collect();
        known.sort();
        assert_eq!(files, known);
    }

    #[test]
    fn a_gpu_that_is_too_old_is_rejected() {
        let gpu = Properties {
            name: "GTX 1080".into(),
            uuid: String::new(),
            capability: 61,
            multiprocessors: 20,
            memory_bytes: 8 << 30,
        };
        let refused = Origin::of(&gpu).unwrap_err().to_string();
        assert!(refused.contains("GTX 1080: compute capability 6.1 is older than 7.0"), "{refused}");
    }

    #[test]
    fn whatever_changes_a_kernel_changes_its_place_in_the_cache() {
        let name = cache_name("linear", "a", 80);
        for other in [cache_name("linear", "b", 80), cache_name("linear", "a", 86), cache_name("conv2d", "a", 80)] {
            assert_ne!(name, other);
        }
        assert_eq!(name, cache_name("linear", "a", 80));
    }
}
