//! Host memory for arenas and packed weights: zeroed pages from the system, huge ones where it has them.

use std::{
    cell::Cell,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use bytemuck::{AnyBitPattern, NoUninit, Pod};
use memmap2::MmapMut;

use crate::{
    backend::{Buffer, DeviceId},
    error::{Error, Result},
};

/// The size from which huge pages are used: they would mostly be unused in smaller memory.
const HUGE_FROM: usize = 4 << 20;

fn pages(bytes: usize) -> Result<MmapMut> {
    let map = MmapMut::map_anon(bytes.max(1))
        .map_err(|e| Error::device(DeviceId::CPU, format!("{bytes} bytes of memory cannot be allocated")).source(e))?;
    #[cfg(target_os = "linux")]
    if bytes >= HUGE_FROM {
        // This is optional: without huge pages everything works, a little slower.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok(map)
}

/// The memory of an arena. The owner of a [`Buffer`] reads and writes its range through [`read`] and [`write()`].
pub struct HostSlab {
    base: *mut u8,
    _map: MmapMut,
}

// SAFETY: the memory is only reached through buffers. Arenas never hand out overlapping ranges, `write` needs `&mut`,
// and a buffer is shared only once it is written.
unsafe impl Send for HostSlab {}
// SAFETY: as above.
unsafe impl Sync for HostSlab {}

impl HostSlab {
    /// Reserves `bytes` of zeroed memory; the system provides pages when they are first used.
    pub fn new(bytes: usize) -> Result<Self> {
        let mut map = pages(bytes)?;
        Ok(Self { base: map.as_mut_ptr(), _map: map })
    }
}

fn base(buffer: &Buffer) -> *mut u8 {
    let slab: Option<&HostSlab> = buffer.slab().held();
    let slab = slab.expect("tensor/ops.rs compares devices: a buffer without data does not reach the CPU");
    // SAFETY: an arena hands out offsets inside its slab only.
    unsafe { slab.base.add(buffer.offset()) }
}

/// The buffer's elements, for reading.
pub fn read<T: AnyBitPattern>(buffer: &Buffer) -> &[T] {
    // SAFETY: the range is this buffer's alone, aligned to more than any element, initialised (pages start as zero),
    // and not written while it is shared; any bits are a T.
    unsafe { std::slice::from_raw_parts(base(buffer).cast(), buffer.bytes() / size_of::<T>()) }
}

/// The buffer's elements, for writing.
pub fn write<T: AnyBitPattern + NoUninit>(buffer: &mut Buffer) -> &mut [T] {
    // SAFETY: as in `read`, and `&mut` ensures that the buffer is not used elsewhere.
    unsafe { std::slice::from_raw_parts_mut(base(buffer).cast(), buffer.bytes() / size_of::<T>()) }
}

/// Elements on memory pages of their own, for packed weights.
pub struct Pages<T>(MmapMut, PhantomData<T>);

impl<T: Pod> Pages<T> {
    /// Reserves `count` zeros.
    pub fn zeroed(count: usize) -> Result<Self> {
        Ok(Self(pages(count.saturating_mul(size_of::<T>()))?, PhantomData))
    }

    /// Copies the elements to other pages.
    pub fn copy(&self) -> Result<Self> {
        let mut copy = Self::zeroed(self.len())?;
        copy.copy_from_slice(self);
        Ok(copy)
    }
}

impl<T: Pod> Deref for Pages<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        let whole = self.0.len() / size_of::<T>() * size_of::<T>();
        bytemuck::cast_slice(&self.0[..whole])
    }
}

impl<T: Pod> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let whole = self.0.len() / size_of::<T>() * size_of::<T>();
        bytemuck::cast_slice_mut(&mut self.0[..whole])
    }
}

thread_local!(static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });

/// Memory of this thread for one task, from its first use to the end of the thread. Its elements are what an earlier
/// task has left. It is taken out and put back, because a closure would be compiled without the path's features.
pub struct Scratch {
    elements: usize,
    memory: Vec<f32>,
}

impl Scratch {
    /// Takes this many elements.
    pub fn take(elements: usize) -> Self {
        let mut memory = SCRATCH.take();
        if memory.len() < elements {
            memory.resize(elements, 0.0);
        }
        Self { elements, memory }
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.memory[..self.elements]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[..self.elements]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.memory));
    }
}

/// A slice whose non-overlapping parts are written by several tasks.
pub struct Parts<'a, T> {
    base: *mut T,
    len: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: a `&mut [T]` may be sent; `part`'s callers never overlap.
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// Parts of all of `slice`.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { base: slice.as_mut_ptr(), len: slice.len(), _slice: PhantomData }
    }

    /// The `len` elements from `start` on.
    ///
    /// # Safety
    /// No two parts in use at one time may overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: inside the slice, as just checked; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(start), len) }
    }

    /// The address of element `start`, for kernels that write rows with gaps between them.
    pub fn at(&self, start: usize) -> *mut T {
        debug_assert!(start <= self.len);
        self.base.wrapping_add(start)
    }
}
