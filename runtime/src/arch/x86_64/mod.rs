//! x86-64.

pub mod doorbell;
pub mod tlsdesc;
