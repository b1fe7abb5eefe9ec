//! An adapter in use: its queue, the commands that are not submitted yet, and its failures.

use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use wgpu::{
    Adapter, BindGroup, Buffer, BufferDescriptor, BufferUsages, CommandEncoder, ComputePipeline, Device,
    DeviceDescriptor, DeviceType, ErrorFilter, Features, Instance, InstanceDescriptor, Limits, MapMode, PollType,
    Queue,
};

use crate::{
    backend::DeviceId,
    error::{Error, Result},
    sync::locked,
};

/// The number of ops in one submission: enough to make its cost small, few enough that the device begins early.
const OPS_PER_SUBMISSION: usize = 32;
/// The bytes that are copied to or from the host at one time.
pub const PIECE_BYTES: usize = 8 << 20;
/// The bytes of parameters that an op may have: Vulkan, Metal and Direct3D 12 all support them.
pub const IMMEDIATE_BYTES: u32 = 128;
/// The invocations that share loads, as in `subgroup.wgsl`.
pub const SHARE: u32 = 8;
/// The number of buffers that one op may bind: every driver supports it.
pub const BINDINGS: usize = 8;

/// The adapters of this machine, the fastest kind first, otherwise in the driver's order.
pub fn adapters() -> &'static [Adapter] {
    static ADAPTERS: OnceLock<Vec<Adapter>> = OnceLock::new();
    ADAPTERS.get_or_init(|| {
        let instance = Instance::new(InstanceDescriptor::new_without_display_handle());
        // If two APIs reach the same GPU, the first of these is used.
        let of = |backends| pollster::block_on(instance.enumerate_adapters(backends));
        let kinds = [wgpu::Backends::VULKAN, wgpu::Backends::METAL, wgpu::Backends::DX12];
        let mut adapters = kinds.into_iter().map(of).find(|found| !found.is_empty()).unwrap_or_default();
        adapters.sort_by_key(|adapter| match adapter.get_info().device_type {
            DeviceType::DiscreteGpu => 0,
            DeviceType::IntegratedGpu => 1,
            DeviceType::VirtualGpu | DeviceType::Other => 2,
            DeviceType::Cpu => 3,
        });
        adapters
    })
}

/// The reason why an adapter cannot be used; `None` if it can.
pub fn lacks(adapter: &Adapter) -> Option<&'static str> {
    let limits = adapter.limits();
    if !adapter.features().contains(Features::IMMEDIATES) || limits.max_immediate_size < IMMEDIATE_BYTES {
        return Some("it takes no parameters beside buffers");
    }
    if (limits.max_storage_buffers_per_shader_stage as usize) < BINDINGS {
        return Some("it has fewer than eight buffers for an op");
    }
    (limits.max_compute_invocations_per_workgroup < 128).then_some("its workgroups are smaller than 128")
}

/// Optional capabilities of an adapter. Tests remove some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The adapter supports f16.
    pub f16: bool,
    /// Invocations can exchange values in subgroups, all at least as large as those of `subgroup.wgsl`.
    pub subgroups: bool,
    /// The adapter loads values that a workgroup shares once for each invocation, as llvmpipe does: sharing loads is
    /// faster.
    pub shares_loads: bool,
    /// The largest range of a buffer that an op can bind, in bytes.
    pub binding_bytes: u64,
    /// The total number of loop iterations of one invocation. llvmpipe ends an invocation that exceeds it, without an
    /// error.
    pub loop_turns: u32,
}

impl Capabilities {
    /// The capabilities of an adapter.
    pub fn of(adapter: &Adapter) -> Self {
        let info = adapter.get_info();
        Self {
            f16: adapter.features().contains(Features::SHADER_F16),
            subgroups: adapter.features().contains(Features::SUBGROUP) && info.subgroup_min_size >= SHARE,
            shares_loads: info.device_type == DeviceType::Cpu,
            binding_bytes: adapter.limits().max_storage_buffer_binding_size,
            loop_turns: if info.driver == "llvmpipe" { 65535 } else { u32::MAX },
        }
    }
}

/// A device with its own queue. Several devices may share an adapter.
pub struct Context {
    id: DeviceId,
    /// The number of the device in this process, which distinguishes its memory from other devices on the same adapter.
    pub number: usize,
    /// The driver's limits.
    limits: Limits,
    /// The capabilities that are used.
    pub capabilities: Capabilities,
    /// The driver's device.
    pub device: Device,
    queue: Queue,
    /// The first error that was not the result of a call. After it, no result of the device is valid.
    failure: Arc<Mutex<Option<String>>>,
    pending: Mutex<Pending>,
    /// Buffers for reading, each of [`PIECE_BYTES`].
    staging: Mutex<Vec<Buffer>>,
}

/// Commands that are not submitted yet.
#[derive(Default)]
struct Pending {
    encoder: Option<CommandEncoder>,
    ops: usize,
}

impl Context {
    /// Opens an adapter.
    ///
    /// # Errors
    /// If its driver returns an error, or it lacks a feature that the kernels need.
    pub fn open(id: DeviceId, adapter: &Adapter, capabilities: Capabilities) -> Result<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        if let Some(lack) = lacks(adapter) {
            return Err(Error::device(id, format!("{} cannot be used: {lack}", adapter.get_info().name)));
        }
        let limits = adapter.limits();
        let descriptor = DeviceDescriptor {
            label: Some("sdshard"),
            required_features: Features::IMMEDIATES
                | adapter.features() & Features::PIPELINE_CACHE
                | if capabilities.f16 { Features::SHADER_F16 } else { Features::empty() }
                | if capabilities.subgroups { Features::SUBGROUP } else { Features::empty() },
            required_limits: limits.clone(),
            ..DeviceDescriptor::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| Error::device(id, "its driver opens no device").source(e))?;
        let failure: Arc<Mutex<Option<String>>> = Arc::default();
        let note = |failure: &Arc<Mutex<Option<String>>>, what: String| {
            locked(failure).get_or_insert(what);
        };
        let noted = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error| note(&noted, error.to_string())));
        let noted = failure.clone();
        device.set_device_lost_callback(move |reason, message| {
            note(&noted, format!("the device is lost ({reason:?}) {message}").trim().to_string());
        });
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (pending, staging) = (Mutex::default(), Mutex::default());
        Ok(Self { id, number, limits, capabilities, device, queue, failure, pending, staging })
    }

    /// Returns the error that the device has reported since it was opened, if any.
    pub fn check(&self) -> Result<()> {
        match &*locked(&self.failure) {
            None => Ok(()),
            Some(failure) => Err(Error::device(self.id, failure.as_str())),
        }
    }

    /// Allocates a buffer for ops.
    ///
    /// # Errors
    /// If the driver has not enough memory.
    pub fn buffer(&self, bytes: usize, label: &str) -> Result<Buffer> {
        self.check()?;
        let size = (bytes.max(1) as u64).next_multiple_of(256);
        if size > self.limits.max_buffer_size {
            return Err(Error::device(self.id, format!("a buffer of {bytes} bytes"))
                .found(format!("the driver goes up to {}", self.limits.max_buffer_size))
                .hint("a smaller request, or fewer of its parts on this device"));
        }
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let scope = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let descriptor = BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        let buffer = self.device.create_buffer(&descriptor);
        match pollster::block_on(scope.pop()) {
            None => self.check().map(|()| buffer),
            Some(error) => Err(Error::device(self.id, format!("no memory for {bytes} bytes")).source(error)),
        }
    }

    /// Adds an op to the queue.
    pub fn dispatch(
        &self,
        pipeline: &ComputePipeline,
        group: &BindGroup,
        parameters: &[u8],
        size: [u32; 3],
    ) -> Result<()> {
        let mut pending = locked(&self.pending);
        let encoder = pending.encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()));
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, group, &[]);
        pass.set_immediates(0, parameters);
        pass.dispatch_workgroups(size[0], size[1], size[2]);
        drop(pass);
        pending.ops += 1;
        if pending.ops >= OPS_PER_SUBMISSION {
            self.submit(&mut pending);
        }
        drop(pending);
        self.check()
    }

    fn submit(&self, pending: &mut Pending) -> wgpu::SubmissionIndex {
        pending.ops = 0;
        self.queue.submit(pending.encoder.take().map(CommandEncoder::finish))
    }

    /// Copies from the host to the device, after everything enqueued so far. The last word is padded with zeros.
    pub fn write(&self, bytes: &[u8], buffer: &Buffer, offset: usize) -> Result<()> {
        let mut pending = locked(&self.pending);
        // Written data takes effect before the next submission.
        self.submit(&mut pending);
        let (words, rest) = bytes.split_at(bytes.len() / 4 * 4);
        self.queue.write_buffer(buffer, offset as u64, words);
        if !rest.is_empty() {
            let mut word = [0; 4];
            word[..rest.len()].copy_from_slice(rest);
            self.queue.write_buffer(buffer, (offset + words.len()) as u64, &word);
        }
        drop(pending);
        self.check()
    }

    /// Submits written data and waits until it has been copied: the driver then frees its own copy.
    pub fn settle(&self) -> Result<()> {
        let index = self.submit(&mut locked(&self.pending));
        self.wait(index)
    }

    fn wait(&self, index: wgpu::SubmissionIndex) -> Result<()> {
        let waited = self.device.poll(PollType::Wait { submission_index: Some(index), timeout: None });
        self.check()?;
        waited.map(|_| ()).map_err(|e| Error::device(self.id, "waiting for it").source(e))
    }

    /// Copies from the device to the host, after everything enqueued so far.
    pub fn read(&self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        for (i, piece) in bytes.chunks_mut(PIECE_BYTES).enumerate() {
            self.read_piece(buffer, offset + i * PIECE_BYTES, piece)?;
        }
        Ok(())
    }

    fn read_piece(&self, buffer: &Buffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.check()?;
        let size = bytes.len().next_multiple_of(4) as u64;
        let free = locked(&self.staging).pop();
        let staging = free.unwrap_or_else(|| {
            self.device.create_buffer(&BufferDescriptor {
                label: Some("reading"),
                size: PIECE_BYTES as u64,
                usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
        let index = {
            let mut pending = locked(&self.pending);
            let encoder =
                pending.encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()));
            encoder.copy_buffer_to_buffer(buffer, offset as u64, &staging, 0, size);
            self.submit(&mut pending)
        };
        let arrived: Arc<Mutex<Option<_>>> = Arc::default();
        let to = arrived.clone();
        staging.map_async(MapMode::Read, 0..size, move |result| *locked(&to) = Some(result));
        self.wait(index)?;
        match locked(&arrived).take() {
            Some(Ok(())) => {}
            Some(Err(e)) => return Err(Error::device(self.id, "reading from it").source(e)),
            None => return Err(Error::device(self.id, "reading from it: no answer")),
        }
        let view = staging.get_mapped_range(0..size);
        let view = view.map_err(|e| Error::device(self.id, "reading from it").source(e))?;
        bytes.copy_from_slice(&view[..bytes.len()]);
        drop(view);
        staging.unmap();
        locked(&self.staging).push(staging);
        Ok(())
    }
}
