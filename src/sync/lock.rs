//! Locks that a panic of their holder does not spoil.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a mutex holds, also after a panic: whoever changes it leaves it as it should be.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
