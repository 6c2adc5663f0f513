//! PostgreSQL on a real server.

mod chance;
mod messages;
mod oracle;
mod scalars;
mod settings;
mod shapes;
mod values;
