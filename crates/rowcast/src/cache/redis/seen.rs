//! How a seen log is cut into pieces, for no Redis string may grow beyond 512 MB.

/// The lengths of the pieces of a log of `length` bytes: full ones, then the one that the next hash goes into (which may be
/// empty).
pub(super) fn pieces(length: u64, piece_bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let full = length / piece_bytes;
    (0..full).map(move |piece| (piece, piece_bytes)).chain([(full, length % piece_bytes)])
}

/// What is appended to which piece when `bytes` go to the end of a log of `length` bytes.
pub(super) fn appended(length: u64, piece_bytes: u64, bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut parts = Vec::new();
    let (mut at, mut rest) = (length, bytes);
    while !rest.is_empty() {
        let room = usize::try_from(piece_bytes - at % piece_bytes).unwrap_or(usize::MAX);
        let (part, left) = rest.split_at(room.min(rest.len()));
        parts.push((at / piece_bytes, part));
        at += part.len() as u64;
        rest = left;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_add_up_to_the_length_and_end_with_the_one_that_grows() {
        assert_eq!(pieces(0, 16).collect::<Vec<_>>(), [(0, 0)]);
        assert_eq!(pieces(8, 16).collect::<Vec<_>>(), [(0, 8)]);
        assert_eq!(pieces(16, 16).collect::<Vec<_>>(), [(0, 16), (1, 0)]);
        assert_eq!(pieces(40, 16).collect::<Vec<_>>(), [(0, 16), (1, 16), (2, 8)]);
    }

    #[test]
    fn what_is_appended_goes_on_in_the_next_piece() {
        assert_eq!(appended(8, 16, &[]), []);
        assert_eq!(appended(8, 16, &[1; 8]), [(0, &[1; 8][..])]);
        assert_eq!(appended(16, 16, &[1; 8]), [(1, &[1; 8][..])]);
        assert_eq!(appended(24, 16, &[1; 32]), [(1, &[1; 8][..]), (2, &[1; 16][..]), (3, &[1; 8][..])]);
    }
}
