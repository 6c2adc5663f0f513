//! What is tested across crates. The suites are in `tests/`; what looks at the sources themselves is here.

#[cfg(test)]
mod architecture;
