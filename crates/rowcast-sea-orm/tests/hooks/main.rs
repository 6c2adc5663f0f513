//! What the hooks write, on real SQLite files and PostgreSQL servers through SeaORM's own drivers.

mod connections;
mod database;
mod entities;
mod installation;
mod operations;
mod postgres;
