//! What Redis alone can do to a cache.

use rowcast::cache::redis::{RedisCache, RedisSettings};

/// A cache of the pipeline `shop` whose seen logs are cut into pieces of three hashes, so that small tests have several.
pub fn cache(url: &str) -> RedisCache {
    let mut settings = RedisSettings::new(url, "shop").unwrap();
    settings.seen_piece_bytes = 24;
    RedisCache::new(settings)
}
