//! Shaders and their pipelines: one for each entry point and set of constants, made when it is first used.

use std::{
    collections::HashMap,
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use wgpu::{
    BindGroup, BindGroupDescriptor, BindGroupEntry, BindGroupLayout, BindGroupLayoutDescriptor, BindGroupLayoutEntry,
    BindingResource, BindingType, BufferBinding, BufferBindingType, ComputePipeline, ComputePipelineDescriptor, Device,
    Features, PipelineCache, PipelineCacheDescriptor, PipelineCompilationOptions, PipelineLayoutDescriptor,
    ShaderModuleDescriptor, ShaderRuntimeChecks, ShaderSource, ShaderStages,
};

use super::{bound::Bound, device::IMMEDIATE_BYTES};
use crate::output;

/// A file of `shaders/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shader {
    /// Matrix products.
    Linear,
    /// Convolutions.
    Conv2d,
    /// Attention.
    Attention,
    /// Group norm.
    GroupNorm,
    /// Layer norm.
    LayerNorm,
    /// Ops that read one position at a time.
    Elementwise,
    /// Ops that move values.
    Layout,
    /// Ops that move words, whatever type of numbers they contain.
    Words,
}

/// How numbers are stored: the file that precedes a shader's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// f16, on an adapter that supports it.
    F16,
    /// f16 in words, on an adapter that does not support it.
    Packed,
}

/// How invocations exchange values without workgroup memory: the file that follows the storage's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lanes {
    /// Invocations exchange no values.
    Alone,
    /// They exchange any values within a subgroup.
    Subgroup,
}

/// How an op uses a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A range of an arena. Ops read and write different ranges of one buffer, and a buffer may be bound in one way
    /// only.
    Arena,
    /// A weight, which is never written.
    Weight,
}

use Access::{Arena, Weight};

impl Shader {
    #[cfg(test)]
    pub const ALL: [Self; 8] = [
        Shader::Linear,
        Shader::Conv2d,
        Shader::Attention,
        Shader::GroupNorm,
        Shader::LayerNorm,
        Shader::Elementwise,
        Shader::Layout,
        Shader::Words,
    ];

    /// The full source: the shader's file after the shared ones.
    pub fn source(self, storage: Storage, lanes: Lanes) -> String {
        const COMMON: &str = include_str!("../../../shaders/common.wgsl");
        const PRODUCT: &str = include_str!("../../../shaders/product.wgsl");
        let storage = match storage {
            Storage::F32 => include_str!("../../../shaders/f32.wgsl"),
            Storage::F16 => include_str!("../../../shaders/f16.wgsl"),
            Storage::Packed => include_str!("../../../shaders/packed.wgsl"),
        };
        let lanes = match lanes {
            Lanes::Alone => include_str!("../../../shaders/alone.wgsl"),
            Lanes::Subgroup => include_str!("../../../shaders/subgroup.wgsl"),
        };
        let own: &[&str] = match self {
            Shader::Linear => &[PRODUCT, include_str!("../../../shaders/linear.wgsl")],
            Shader::Conv2d => &[PRODUCT, include_str!("../../../shaders/conv2d.wgsl")],
            Shader::Attention => &[include_str!("../../../shaders/attention.wgsl")],
            Shader::GroupNorm => &[include_str!("../../../shaders/group_norm.wgsl")],
            Shader::LayerNorm => &[include_str!("../../../shaders/layer_norm.wgsl")],
            Shader::Elementwise => &[include_str!("../../../shaders/elementwise.wgsl")],
            Shader::Layout => &[include_str!("../../../shaders/layout.wgsl")],
            Shader::Words => return include_str!("../../../shaders/words.wgsl").to_string(),
        };
        [storage, lanes, COMMON].into_iter().chain(own.iter().copied()).collect()
    }

    /// The bindings in order: the result twice, as vectors of four and as single elements, then the inputs.
    pub const fn bindings(self) -> &'static [Access] {
        match self {
            Shader::Linear | Shader::Conv2d => &[Arena, Arena, Arena, Weight, Weight, Arena, Arena],
            Shader::Attention => &[Arena, Arena, Arena, Arena, Arena],
            Shader::GroupNorm => &[Arena, Arena, Arena, Arena, Arena, Weight, Weight],
            Shader::LayerNorm => &[Arena, Arena, Arena, Weight, Weight],
            Shader::Elementwise => &[Arena, Arena, Arena, Arena, Arena, Arena, Arena, Arena],
            Shader::Layout => &[Arena, Arena, Arena, Arena, Arena, Weight, Weight],
            Shader::Words => &[Arena, Arena],
        }
    }
}

/// The values of a shader's `override`s.
pub type Constants = Vec<(&'static str, u32)>;

/// One pipeline: an entry point of a shader, with constants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The shader.
    pub shader: Shader,
    /// How numbers are stored.
    pub storage: Storage,
    /// How invocations exchange values.
    pub lanes: Lanes,
    /// The entry point.
    pub entry: &'static str,
    /// The values of its `override`s.
    pub constants: Constants,
}

/// The driver's compiled shaders, stored for the next run.
struct Kept {
    cache: PipelineCache,
    file: PathBuf,
    has_more: AtomicBool,
}

impl Kept {
    /// `None` if the driver cannot store them.
    fn open(device: &Device, file: PathBuf) -> Option<Self> {
        if !device.features().contains(Features::PIPELINE_CACHE) {
            return None;
        }
        let data = read_checked(&file);
        let descriptor = PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
        // SAFETY: the data is what a driver gave for the same adapter: the file's name says for which, its sum that
        // nothing has changed since. A driver of another version refuses it by its header.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Self { cache, file, has_more: AtomicBool::new(false) })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.has_more.load(Ordering::Relaxed) {
            return;
        }
        if let Some(data) = self.cache.get_data()
            && let Err(error) = write_checked(&self.file, &data)
        {
            tracing::debug!("{} cannot be written: {error}", self.file.display());
        }
    }
}

/// FNV-1a: sufficient to detect a truncated or overwritten file.
fn sum_of(data: &[u8]) -> [u8; 8] {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    data.iter().fold(0xcbf2_9ce4_8422_2325, step).to_le_bytes()
}

/// The contents of a file after its checksum; `None` if it does not exist or has changed.
fn read_checked(file: &Path) -> Option<Vec<u8>> {
    let bytes = crate::input::read(file).ok()?;
    let (sum, data) = bytes.split_at_checked(8)?;
    (sum == sum_of(data)).then(|| data.to_vec())
}

/// Writes a file of a checksum and `data`.
fn write_checked(file: &Path, data: &[u8]) -> std::io::Result<()> {
    output::write_cache(file, &[&sum_of(data), data].concat())
}

/// The pipelines of one device.
pub struct Pipelines {
    kept: Option<Kept>,
    shaders: Mutex<HashMap<(Shader, Storage, Lanes), Arc<Module>>>,
    pipelines: Mutex<HashMap<Variant, Arc<ComputePipeline>>>,
    groups: Arc<Groups>,
}

/// A bound range: the buffer, the offset and the size.
type Binding = (wgpu::Buffer, u64, u64);

/// A cache of bind groups: a step of the loop binds the same ranges as the step before it. Groups hold references to
/// their buffers, so the cache is cleared when one of the buffers is dropped.
#[derive(Default)]
pub struct Groups(Mutex<HashMap<(Shader, Vec<Binding>), BindGroup>>);

impl Groups {
    /// The largest number of groups that are kept: several times what a step of a large network binds.
    const MOST: usize = 1 << 13;

    /// Removes all groups.
    pub fn clear(&self) {
        self.groups().clear();
    }

    fn groups(&self) -> std::sync::MutexGuard<'_, HashMap<(Shader, Vec<Binding>), BindGroup>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A compiled shader module.
struct Module {
    module: wgpu::ShaderModule,
    group: BindGroupLayout,
    layout: wgpu::PipelineLayout,
}

impl Module {
    fn new(device: &Device, shader: Shader, storage: Storage, lanes: Lanes) -> Self {
        let source = ShaderSource::Wgsl(shader.source(storage, lanes).into());
        let label = format!("{shader:?} {storage:?} {lanes:?}");
        let descriptor = ShaderModuleDescriptor { label: Some(&label), source };
        // wgpu's check of loop bounds costs more than most loops do.
        let checks =
            ShaderRuntimeChecks { force_loop_bounding: false, int_div_checks: false, ..ShaderRuntimeChecks::checked() };
        // SAFETY: every loop counts up to a bound that is fixed before it, and all divisors are sizes, which are not 0.
        // What an op reads and writes is still checked.
        let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
        let entry = |(i, access): (usize, &Access)| BindGroupLayoutEntry {
            binding: i as u32,
            visibility: ShaderStages::COMPUTE,
            ty: BindingType::Buffer {
                ty: BufferBindingType::Storage { read_only: *access == Access::Weight },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let entries: Vec<_> = shader.bindings().iter().enumerate().map(entry).collect();
        let descriptor = BindGroupLayoutDescriptor { label: Some(&label), entries: &entries };
        let group = device.create_bind_group_layout(&descriptor);
        let layout = device.create_pipeline_layout(&PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&group)],
            immediate_size: IMMEDIATE_BYTES,
        });
        Self { module, group, layout }
    }
}

impl Pipelines {
    /// An empty set of pipelines. The driver's compiled form of them is stored in `file`, if there is one.
    pub fn new(device: &Device, file: Option<PathBuf>) -> Self {
        let kept = file.and_then(|file| Kept::open(device, file));
        Self { kept, shaders: Mutex::default(), pipelines: Mutex::default(), groups: Arc::default() }
    }

    /// The cache of bind groups.
    pub fn groups(&self) -> &Arc<Groups> {
        &self.groups
    }

    fn module(&self, device: &Device, &Variant { shader, storage, lanes, .. }: &Variant) -> Arc<Module> {
        let mut shaders = self.shaders.lock().unwrap_or_else(PoisonError::into_inner);
        let module = || Arc::new(Module::new(device, shader, storage, lanes));
        shaders.entry((shader, storage, lanes)).or_insert_with(module).clone()
    }

    /// The pipeline of a variant.
    pub fn get(&self, device: &Device, variant: Variant) -> Arc<ComputePipeline> {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = pipelines.get(&variant) {
            return pipeline.clone();
        }
        let module = self.module(device, &variant);
        let constants: Vec<(&str, f64)> = variant.constants.iter().map(|&(name, value)| (name, value.into())).collect();
        let pipeline = Arc::new(device.create_compute_pipeline(&ComputePipelineDescriptor {
            label: Some(variant.entry),
            layout: Some(&module.layout),
            module: &module.module,
            entry_point: Some(variant.entry),
            // Every shader writes its workgroup memory before it reads it.
            compilation_options: PipelineCompilationOptions {
                constants: &constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: self.kept.as_ref().map(|kept| &kept.cache),
        }));
        if let Some(kept) = &self.kept {
            kept.has_more.store(true, Ordering::Relaxed);
        }
        pipelines.insert(variant, pipeline.clone());
        pipeline
    }

    /// The bind group of ranges in the order of a shader's bindings. All variants of a shader have the same layout.
    pub fn bind(&self, device: &Device, variant: &Variant, bound: &[Bound]) -> BindGroup {
        let binding = |bound: &Bound| (bound.buffer.clone(), bound.offset, bound.size);
        let key = (variant.shader, bound.iter().map(binding).collect());
        let mut groups = self.groups.groups();
        if let Some(group) = groups.get(&key) {
            return group.clone();
        }
        let module = self.module(device, variant);
        let entries: Vec<_> = (bound.iter().enumerate())
            .map(|(i, &Bound { buffer, offset, size })| BindGroupEntry {
                binding: i as u32,
                resource: BindingResource::Buffer(BufferBinding { buffer, offset, size: NonZero::new(size) }),
            })
            .collect();
        let descriptor = BindGroupDescriptor { label: None, layout: &module.group, entries: &entries };
        let group = device.create_bind_group(&descriptor);
        if groups.len() >= Groups::MOST {
            groups.clear();
        }
        groups.insert(key, group.clone());
        group
    }
}

#[cfg(test)]
mod tests {
    use naga::{
        front::wgsl,
        valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator},
    };

    use super::*;

    /// Validates a shader for an adapter that has f16, and subgroups if the shader uses them.
    fn check(source: &str, lanes: Lanes) -> Result<naga::Module, String> {
        let module = wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
        let mut capabilities =
            Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16 | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        capabilities.set(Capabilities::SUBGROUP, lanes == Lanes::Subgroup);
        let mut validator = Validator::new(ValidationFlags::all(), capabilities);
        if lanes == Lanes::Subgroup {
            validator.subgroup_stages(ShaderStages::COMPUTE).subgroup_operations(SubgroupOperationSet::all());
        }
        validator.validate(&module).map_err(|e| e.emit_to_string(source))?;
        Ok(module)
    }

    fn variants() -> impl Iterator<Item = (Storage, Lanes)> {
        let storages = [Storage::F32, Storage::F16, Storage::Packed];
        storages.into_iter().flat_map(|storage| [(storage, Lanes::Alone), (storage, Lanes::Subgroup)])
    }

    #[test]
    fn every_shader_is_valid_in_every_variant_and_binds_what_its_table_says() {
        for shader in Shader::ALL {
            for (storage, lanes) in variants() {
                let module = check(&shader.source(storage, lanes), lanes);
                let module = module.unwrap_or_else(|e| panic!("{shader:?} {storage:?} {lanes:?}: {e}"));
                assert!(!module.entry_points.is_empty());
                let mut bindings: Vec<_> = module
                    .global_variables
                    .iter()
                    .filter_map(|(_, variable)| match variable.space {
                        naga::AddressSpace::Storage { access } => {
                            let writes = access.contains(naga::StorageAccess::STORE);
                            Some((variable.binding?.binding, if writes { Arena } else { Weight }))
                        }
                        _ => None,
                    })
                    .collect();
                bindings.sort_by_key(|binding| binding.0);
                let places: Vec<_> = bindings.iter().map(|binding| binding.0 as usize).collect();
                assert_eq!(places, (0..bindings.len()).collect::<Vec<_>>(), "{shader:?}");
                let kinds: Vec<_> = bindings.iter().map(|binding| binding.1).collect();
                assert_eq!(kinds, shader.bindings(), "{shader:?}");
                // A shader without `enable f16` cannot use the type.
                let knows_f16 = module.types.iter().any(|(_, ty)| {
                    matches!(ty.inner, naga::TypeInner::Vector { scalar, .. } | naga::TypeInner::Scalar(scalar)
                        if scalar == naga::Scalar::F16)
                });
                assert_eq!(knows_f16, storage == Storage::F16 && shader != Shader::Words, "{shader:?} {storage:?}");
            }
        }
    }

    #[test]
    fn a_file_that_has_changed_is_not_given_to_the_driver() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/cache");
        assert_eq!(read_checked(&file), None);
        write_checked(&file, b"pipelines").unwrap();
        assert_eq!(read_checked(&file).as_deref(), Some(&b"pipelines"[..]));
        let whole = std::fs::read(&file).unwrap();
        for bytes in [&whole[..whole.len() - 1], &whole[..7], b"", &[&whole[..], b"x"].concat()] {
            std::fs::write(&file, bytes).unwrap();
            assert_eq!(read_checked(&file), None);
        }
    }

    #[test]
    fn a_shader_with_a_mistake_is_refused() {
        let source = Shader::Linear.source(Storage::F32, Lanes::Alone);
        for (right, wrong) in
            [("row * p.channels", "row * p.wrong"), ("min(4u, mine - column)", "min(4.0, mine - column)")]
        {
            assert!(
                source.contains(right) && check(&source.replacen(right, wrong, 1), Lanes::Alone).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn only_shaders_for_subgroups_ask_for_them() {
        for shader in [Shader::Linear, Shader::Conv2d, Shader::Attention, Shader::GroupNorm, Shader::LayerNorm] {
            let source = shader.source(Storage::F32, Lanes::Subgroup);
            let refusal = check(&source, Lanes::Alone).expect_err("an adapter without them has no such functions");
            assert!(refusal.contains("SUBGROUP"), "{shader:?}: {refusal}");
        }
    }
}
