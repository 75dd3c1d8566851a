//! What identifies an event source in a [`WaitContext`](crate::WaitContext), and the arithmetic behind
//! `#[derive(EventToken)]`.

pub use base_event_token_derive::EventToken;

/// A value that fits into the 64 bits that the kernel stores with a registration.
///
/// ```
/// #[derive(base::EventToken)]
/// enum Token {
///     Kill,
///     Device(u32),
///     Queue { index: usize },
/// }
/// ```
///
/// A field that leaves no room for the variant's index does not compile:
///
/// ```compile_fail,E0080
/// #[derive(base::EventToken)]
/// enum Token {
///     Kill,
///     Device(u64),
/// }
/// ```
pub trait EventToken {
    /// Returns the bits that stand for this token.
    fn as_raw_token(&self) -> u64;

    /// Returns the token that `data` stands for.
    ///
    /// # Panics
    /// If no token has these bits; they come from the kernel, which returns what `as_raw_token` gave it.
    fn from_raw_token(data: u64) -> Self;
}

/// A type that a variant of a derived token may carry. Implemented for `bool` and the integers up to 64 bits.
pub trait TokenField: Copy {
    /// How many bits a value can need; 0 for `usize`, whose values are checked when they are packed.
    const BITS: u32;

    /// Returns the value as bits.
    fn into_bits(self) -> u64;

    /// Returns the value of the bits that [`TokenField::into_bits`] gave.
    fn from_bits(bits: u64) -> Self;
}

/// Packs a variant's index (in the low `index_bits` bits) with its field.
///
/// # Panics
/// If the field's value needs more than the bits that are left, which only a `usize` can. A token that silently stood
/// for another one would be worse.
#[doc(hidden)]
pub fn pack<F: TokenField>(index: u64, index_bits: u32, field: F) -> u64 {
    let bits = field.into_bits();
    let shifted = bits << index_bits;
    assert_eq!(
        shifted >> index_bits,
        bits,
        "the value of an event token's field has at most {} bits",
        64 - index_bits
    );
    shifted | index
}

/// Returns the field of a packed token.
#[doc(hidden)]
pub fn unpack<F: TokenField>(index_bits: u32, data: u64) -> F {
    F::from_bits(data >> index_bits)
}

/// Returns the variant's index of a packed token.
#[doc(hidden)]
pub fn index(index_bits: u32, data: u64) -> u64 {
    data & ((1 << index_bits) - 1)
}

macro_rules! integer {
    ($($ty:ty: $bits:expr, $unsigned:ty;)*) => {$(
        impl TokenField for $ty {
            const BITS: u32 = $bits;

            fn into_bits(self) -> u64 {
                self as $unsigned as u64
            }

            fn from_bits(bits: u64) -> Self {
                bits as $ty
            }
        }

        impl EventToken for $ty {
            fn as_raw_token(&self) -> u64 {
                self.into_bits()
            }

            fn from_raw_token(data: u64) -> Self {
                Self::from_bits(data)
            }
        }
    )*};
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_lossless,
    trivial_numeric_casts,
    reason = "a round trip through u64 of at least as many bits"
)]
mod integers {
    use super::EventToken;
    use super::TokenField;

    integer! {
        u8: 8, u8; u16: 16, u16; u32: 32, u32; u64: 64, u64; usize: 0, usize;
        i8: 8, u8; i16: 16, u16; i32: 32, u32; i64: 64, u64;
    }
}

impl TokenField for bool {
    const BITS: u32 = 1;

    fn into_bits(self) -> u64 {
        u64::from(self)
    }

    fn from_bits(bits: u64) -> Self {
        bits != 0
    }
}

/// For a wait context with one source.
impl EventToken for () {
    fn as_raw_token(&self) -> u64 {
        0
    }

    fn from_raw_token(_data: u64) -> Self {}
}

#[cfg(test)]
mod tests {
    use super::*;

    type Alias = u32;

    #[derive(Debug, PartialEq, EventToken)]
    enum Token {
        Kill,
        Queue(usize),
        Device { id: Alias },
        Signed(i32),
        Flag(bool),
    }

    #[derive(Debug, PartialEq, EventToken)]
    enum Whole {
        Word(u64),
    }

    #[track_caller]
    fn check(token: Token, raw: u64) {
        assert_eq!(token.as_raw_token(), raw);
        assert_eq!(Token::from_raw_token(raw), token);
    }

    #[test]
    fn index_takes_the_low_bits_and_field_the_rest() {
        check(Token::Kill, 0);
        check(Token::Queue(0), 1);
        check(Token::Queue(5), 5 << 3 | 1);
        check(Token::Queue(usize::MAX >> 3), u64::MAX << 3 | 1);
        check(Token::Device { id: u32::MAX }, 0xffff_ffff << 3 | 2);
        check(Token::Signed(-1), 0xffff_ffff << 3 | 3);
        check(Token::Flag(true), 1 << 3 | 4);
    }

    #[test]
    fn single_variant_leaves_all_bits_to_its_field() {
        assert_eq!(Whole::Word(u64::MAX).as_raw_token(), u64::MAX);
        assert_eq!(Whole::from_raw_token(7), Whole::Word(7));
    }

    #[test]
    fn usize_too_large_for_the_field_panics() {
        let packed = std::panic::catch_unwind(|| Token::Queue(usize::MAX >> 2).as_raw_token());
        assert_eq!(packed.ok(), None);
    }

    #[test]
    fn integers_are_their_own_tokens() {
        assert_eq!(42u32.as_raw_token(), 42);
        assert_eq!((-1i16).as_raw_token(), 0xffff);
        assert_eq!(i16::from_raw_token(0xffff), -1);
    }
}
