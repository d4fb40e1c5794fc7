//! x86-64.

pub mod dispatch;
pub mod doorbell;
pub mod tlsdesc;
