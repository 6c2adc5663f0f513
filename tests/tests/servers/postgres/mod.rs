//! PostgreSQL on a real server: values, messages, and the source, which brings the cache to hold what the tables hold, whatever is done to
//! them.

mod chance;
mod check;
mod encodings;
mod filters;
mod held;
mod history;
mod hooks;
mod messages;
mod oracle;
mod pipeline;
mod restarts;
mod scalars;
mod settings;
mod several;
mod shapes;
mod slice;
mod statements;
mod stress;
mod values;
mod visibility;

use pipeline::Pipeline;
