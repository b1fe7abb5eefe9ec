//! The type of a binding.

/// A bound range of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Bound<'a> {
    /// The buffer.
    pub buffer: &'a wgpu::Buffer,
    /// The offset in the buffer, in bytes.
    pub offset: u64,
    /// The size, in bytes.
    pub size: u64,
}
