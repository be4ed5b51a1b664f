//! A number as it stands in JSON, and what it is as a float or an integer, exactly.

/// Powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// Powers of ten that shift the digits of a whole part.
const TENS: [u64; 8] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];

/// Integers up to here are exact in a double.
const EXACT: u64 = 1 << 53;

/// A number that was found to be one of JSON: `digits * 10^exponent`, the digits in `mantissa` unless they overflow it.
#[derive(Debug, Clone, Copy)]
pub struct Number<'a> {
    text: &'a str,
    mantissa: u64,
    exponent: i64,
    negative: bool,
    overflow: bool,
    integral: bool,
}

/// Digits read one after another: their value, how many bytes, and whether the value is too large for 64 bits.
struct Digits {
    mantissa: u64,
    end: usize,
    overflow: bool,
}

#[inline]
fn digits(bytes: &[u8], start: usize, mantissa: u64, overflow: bool) -> Digits {
    let mut all = Digits { mantissa, end: start, overflow };
    while let Some(digit) = bytes.get(all.end).map(|byte| byte.wrapping_sub(b'0')).filter(|&digit| digit < 10) {
        // below a tenth of the largest value (nearly always) one more digit always fits
        if all.mantissa < u64::MAX / 10 {
            all.mantissa = all.mantissa * 10 + u64::from(digit);
        } else {
            all.overflow = true;
        }
        all.end += 1;
    }
    all
}

impl<'a> Number<'a> {
    /// Read a number at the beginning of a text, and say how many bytes it has.
    ///
    /// # Errors
    /// What was expected, where it is no number of JSON.
    #[inline]
    pub fn scan(text: &'a str) -> Result<(Self, usize), &'static str> {
        let bytes = text.as_bytes();
        let negative = bytes.first() == Some(&b'-');
        let start = usize::from(negative);
        let mut all = digits(bytes, start, 0, false);
        match all.end - start {
            0 => return Err("expected a number"),
            2.. if bytes[start] == b'0' => return Err("expected a number without leading zeros"),
            _ => {}
        }
        let mut exponent = 0;
        let integer_end = all.end;
        if bytes.get(all.end) == Some(&b'.') {
            let fraction = all.end + 1;
            all = digits(bytes, fraction, all.mantissa, all.overflow);
            if all.end == fraction {
                return Err("expected digits after the decimal point");
            }
            exponent = -length(all.end - fraction);
        }
        let mut end = all.end;
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let (power, after) = power(bytes, end + 1)?;
            exponent = power.saturating_add(exponent);
            end = after;
        }
        let integral = end == integer_end;
        let text = &text[..end];
        Ok((Self { text, mantissa: all.mantissa, exponent, negative, overflow: all.overflow, integral }, end))
    }

    /// The number as it was written.
    #[must_use]
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// Whether it was written without fraction and exponent.
    #[must_use]
    pub fn is_integral(&self) -> bool {
        self.integral
    }

    /// The nearest double; infinite where it is too large.
    #[must_use]
    #[inline]
    #[allow(clippy::cast_precision_loss, reason = "checked to be exact")]
    pub fn to_f64(&self) -> f64 {
        // Clinger's fast path: two exact operands, so one rounding
        if self.mantissa <= EXACT && !self.overflow && self.exponent.unsigned_abs() < 23 {
            let power = POWERS[usize::try_from(self.exponent.unsigned_abs()).unwrap_or_default()];
            let value = self.mantissa as f64;
            let value = if self.exponent < 0 { value / power } else { value * power };
            return if self.negative { -value } else { value };
        }
        fast_float2::parse(self.text).unwrap_or(f64::NAN)
    }

    /// The integer that it is exactly, however it was written; None where it is none, or too large for 64 bits.
    #[must_use]
    #[inline]
    pub fn to_i64(&self) -> Option<i64> {
        let value = i128::from(self.magnitude()?);
        i64::try_from(if self.negative { -value } else { value }).ok()
    }

    /// The same for an integer without sign; `-0` is one.
    #[must_use]
    #[inline]
    pub fn to_u64(&self) -> Option<u64> {
        self.magnitude().filter(|&magnitude| magnitude == 0 || !self.negative)
    }

    #[inline]
    fn magnitude(&self) -> Option<u64> {
        if self.integral && !self.overflow { Some(self.mantissa) } else { self.whole() }
    }

    /// The magnitude of a number with fraction, exponent or many digits, if it is whole and fits 64 bits.
    #[cold]
    fn whole(&self) -> Option<u64> {
        let written = self.text.split(['e', 'E']).next().unwrap_or_default();
        let all: Vec<u8> = written.bytes().filter(u8::is_ascii_digit).collect();
        let Some(first) = all.iter().position(|&digit| digit != b'0') else { return Some(0) };
        let last = all.iter().rposition(|&digit| digit != b'0').unwrap_or(first);
        let exponent = self.exponent.saturating_add(length(all.len() - 1 - last));
        let zeros = usize::try_from(exponent).ok()?;
        if last - first + 1 + zeros.min(20) > 20 {
            return None;
        }
        let value = all[first..=last].iter().fold(0, |sum, digit| sum * 10 + u128::from(digit - b'0'));
        u64::try_from(value * 10_u128.pow(u32::try_from(zeros).ok()?)).ok()
    }
}

/// What nearly every number is: a decimal without exponent, of digits that a double holds exactly.
///
/// Says its value and how many bytes it has; None for every other number, and for what is none.
#[inline]
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "checked to be exact")]
pub fn plain_decimal(bytes: &[u8]) -> Option<(f64, usize)> {
    let start = usize::from(bytes.first() == Some(&b'-'));
    let (mut mantissa, whole) = few_digits(bytes, start)?;
    let mut end = start + whole;
    if whole == 0 || (whole > 1 && bytes[start] == b'0') {
        return None;
    }
    let mut decimals = 0;
    if bytes.get(end) == Some(&b'.') {
        let (fraction, count) = few_digits(bytes, end + 1)?;
        if count == 0 {
            return None;
        }
        mantissa = mantissa * TENS[count] + fraction;
        decimals = count;
        end += 1 + count;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) || mantissa > EXACT {
        return None;
    }
    let magnitude = mantissa as f64 / POWERS[decimals];
    // The sign is a bit and no branch: signs come in no order that could be foreseen.
    Some((f64::from_bits(magnitude.to_bits() | (start as u64) << 63), end))
}

/// The value of the digits at a place, and how many there are; None where they are more than seven.
///
/// Eight bytes are looked at as one word, as in Johnny Lee, "Fast numeric string to int" (2016), and Daniel Lemire,
/// "Quickly parsing eight digits" (2018).
#[inline]
fn few_digits(bytes: &[u8], start: usize) -> Option<(u64, usize)> {
    const PAIRS: u64 = 0x0000_00FF_0000_00FF;
    let word = match bytes.get(start..start + 8) {
        Some(eight) => u64::from_le_bytes(eight.try_into().ok()?),
        None => last_word(bytes.get(start..)?),
    };
    let digits = word ^ 0x3030_3030_3030_3030;
    // A byte that is no digit sets its highest bit; what it may carry reaches only bytes behind it.
    let others = (digits.wrapping_add(0x7676_7676_7676_7676) | digits) & 0x8080_8080_8080_8080;
    let count = (others.trailing_zeros() / 8) as usize;
    if count == 8 {
        return None;
    }
    // Shifted so that zeros stand in front of the digits; in two steps, since all 64 bits cannot go at once.
    let padded = digits << (56 - 8 * count) << 8;
    let pairs = padded.wrapping_mul(10).wrapping_add(padded >> 8);
    let high = (pairs & PAIRS).wrapping_mul(100 + (1_000_000 << 32));
    let low = (pairs >> 16 & PAIRS).wrapping_mul(1 + (10_000 << 32));
    Some((high.wrapping_add(low) >> 32, count))
}

/// Fewer than eight bytes, with zero bytes behind them.
#[cold]
fn last_word(rest: &[u8]) -> u64 {
    let mut eight = [0; 8];
    eight[..rest.len()].copy_from_slice(rest);
    u64::from_le_bytes(eight)
}

/// A length as a summand of an exponent.
fn length(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The exponent after `e`, clamped far outside of what doubles hold, and where it ends.
#[cold]
fn power(bytes: &[u8], start: usize) -> Result<(i64, usize), &'static str> {
    let negative = bytes.get(start) == Some(&b'-');
    let first = start + usize::from(matches!(bytes.get(start), Some(b'+' | b'-')));
    let all = digits(bytes, first, 0, false);
    if all.end == first {
        return Err("expected digits in the exponent");
    }
    let value = if all.overflow { i64::MAX / 2 } else { i64::try_from(all.mantissa).unwrap_or(i64::MAX / 2) };
    Ok((if negative { -value } else { value }, all.end))
}
