//! A shape, a type and a buffer on one device.

pub mod random;
