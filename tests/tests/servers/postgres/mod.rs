//! The PostgreSQL source on a real server: whatever is done to the tables, the cache comes to hold what they hold.

mod pipeline;
mod slice;

use pipeline::Pipeline;
