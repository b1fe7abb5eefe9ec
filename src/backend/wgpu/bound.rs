//! What a binding is.

/// A range of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Bound<'a> {
    /// The buffer.
    pub buffer: &'a wgpu::Buffer,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its size, in bytes.
    pub size: u64,
}
