//! What the hooks write, on real SQLite files through SeaORM's own driver.

mod connections;
mod database;
mod entities;
mod installation;
mod operations;
