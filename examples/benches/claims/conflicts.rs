//! TODO-conflicts

pub(crate) fn tables(_runs: usize) -> Vec<String> {
    Vec::new()
}
