//! An adapter in use: its queue, the commands that wait to be sent, and what has gone wrong.

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

/// Ops that are sent together: enough that sending costs little, few enough that the device begins early.
const OPS_PER_SUBMISSION: usize = 32;
/// What is copied to or from the host at one time, in bytes.
pub const PIECE_BYTES: usize = 8 << 20;
/// Bytes of parameters that an op may have: what Vulkan, Metal and Direct3D 12 all offer.
pub const IMMEDIATE_BYTES: u32 = 128;
/// Invocations that share what they load, as in `subgroup.wgsl`.
pub const SHARE: u32 = 8;
/// Buffers that one op may use: what every driver offers.
pub const BINDINGS: usize = 8;

/// The adapters of this machine, the fastest kind first, in the driver's order otherwise.
pub fn adapters() -> &'static [Adapter] {
    static ADAPTERS: OnceLock<Vec<Adapter>> = OnceLock::new();
    ADAPTERS.get_or_init(|| {
        let instance = Instance::new(InstanceDescriptor::new_without_display_handle());
        // Where two interfaces reach the same card, the first of these is enough.
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

/// Why an adapter cannot be used, if it cannot.
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

/// What an adapter can do beyond what all of them can. Tests take something away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// It knows f16.
    pub f16: bool,
    /// Invocations tell each other values in subgroups, none of which is smaller than those of `subgroup.wgsl`.
    pub subgroups: bool,
    /// It loads what a workgroup has in common once for each invocation, as llvmpipe does: they had better share.
    pub shares_loads: bool,
    /// The most that an op can bind of one buffer, in bytes.
    pub binding_bytes: u64,
    /// How often the loops of one invocation may turn in all. llvmpipe ends one that turns more often, in silence.
    pub loop_turns: u32,
}

impl Capabilities {
    /// Of an adapter.
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

/// A device with a queue of its own. Several of them may share an adapter.
pub struct Context {
    id: DeviceId,
    /// Makes its memory different from that of every other device, also on the same adapter.
    pub number: usize,
    /// What the driver offers.
    limits: Limits,
    /// What is used of it.
    pub capabilities: Capabilities,
    /// The driver's device.
    pub device: Device,
    queue: Queue,
    /// The first failure that nobody was asked about: from then on nothing that the device says is true.
    failure: Arc<Mutex<Option<String>>>,
    pending: Mutex<Pending>,
    /// Buffers for reading, each of [`PIECE_BYTES`].
    staging: Mutex<Vec<Buffer>>,
}

/// Commands that wait to be sent.
#[derive(Default)]
struct Pending {
    encoder: Option<CommandEncoder>,
    ops: usize,
}

impl Context {
    /// Opens an adapter.
    ///
    /// # Errors
    /// If its driver refuses, or it lacks what the kernels need.
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

    /// What the device reported since it was opened.
    pub fn check(&self) -> Result<()> {
        match &*locked(&self.failure) {
            None => Ok(()),
            Some(failure) => Err(Error::device(self.id, failure.as_str())),
        }
    }

    /// A buffer that ops can use.
    ///
    /// # Errors
    /// If the driver has no such memory.
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

    /// Host to device, after everything enqueued so far. The last word is filled up with zeros.
    pub fn write(&self, bytes: &[u8], buffer: &Buffer, offset: usize) -> Result<()> {
        let mut pending = locked(&self.pending);
        // What is written takes effect in front of the next submission.
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

    /// Sends what was written and waits until it has arrived: the driver's copy of it is then free.
    pub fn settle(&self) -> Result<()> {
        let index = self.submit(&mut locked(&self.pending));
        self.wait(index)
    }

    fn wait(&self, index: wgpu::SubmissionIndex) -> Result<()> {
        let waited = self.device.poll(PollType::Wait { submission_index: Some(index), timeout: None });
        self.check()?;
        waited.map(|_| ()).map_err(|e| Error::device(self.id, "waiting for it").source(e))
    }

    /// Device to host, after everything enqueued so far.
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
