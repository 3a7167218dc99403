//! The project's own commands: `cargo xtask demo`, `cargo xtask test`, `cargo xtask guest`.
fn main() {}
