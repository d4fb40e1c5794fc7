//! Reading attributes from inside the process.

/// Functions the runtime exports for patches; [`crate::author`] declares them.
pub const FUNCTIONS: &[&str] = &["suture_attribute_get", "suture_attribute_read", "suture_attribute_set"];
