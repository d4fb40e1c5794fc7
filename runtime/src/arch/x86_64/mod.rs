//! x86-64.

pub mod dispatch;
pub mod doorbell;
pub mod host;
pub mod late;
mod save;
pub mod tags;
pub mod tlsdesc;
