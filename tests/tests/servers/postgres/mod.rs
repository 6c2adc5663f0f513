//! PostgreSQL on a real server.

mod chance;
mod oracle;
mod scalars;
mod shapes;
mod values;
