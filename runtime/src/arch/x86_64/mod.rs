//! x86-64.

pub mod dispatch;
pub mod doorbell;
pub mod host;
pub mod late;
pub mod tags;
pub mod tlsdesc;
