//! x86-64.

pub mod dispatch;
pub mod doorbell;
pub mod host;
pub mod late;
pub mod tlsdesc;
