//! Means of few repeats, with Student's 95 % interval.

/// A mean and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Half the width of the 95 % interval; `None` of a single value.
    pub half: Option<f64>,
    /// Standard deviation over the mean; `None` of a single value.
    pub cv: Option<f64>,
}

impl Interval {
    /// Of values; `None` of none, or if one is not finite.
    pub fn of(values: &[f64]) -> Option<Interval> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        if !mean.is_finite() {
            return None;
        }
        let freedom = values.len() - 1;
        if freedom == 0 {
            return Some(Interval { mean, half: None, cv: None });
        }
        let deviation = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / freedom as f64).sqrt();
        let cv = (mean != 0.0).then(|| deviation / mean.abs());
        Some(Interval { mean, half: Some(student(freedom) * deviation / n.sqrt()), cv })
    }

    /// Both ends.
    pub fn ends(&self) -> Option<(f64, f64)> {
        self.half.map(|half| (self.mean - half, self.mean + half))
    }
}

/// The ratio `b/a` of paired values, its 95 % interval by the logarithms' (so that a/b and b/a say the same).
pub fn paired_ratio(a: &[f64], b: &[f64]) -> Option<Interval> {
    let logs: Vec<f64> = a.iter().zip(b).map(|(a, b)| (b / a).ln()).collect();
    Interval::of(&logs)
}

/// The 0.975 quantile of Student's distribution; that of the normal one beyond the table.
fn student(freedom: usize) -> f64 {
    // NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
        2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    ];
    TABLE.get(freedom - 1).copied().unwrap_or(1.960)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_follow_students_distribution() {
        // R: t.test(c(10, 12, 11, 13, 14)): mean 12, interval 10.03676 to 13.96324.
        let interval = Interval::of(&[10.0, 12.0, 11.0, 13.0, 14.0]).unwrap();
        let (low, high) = interval.ends().unwrap();
        assert_eq!(interval.mean, 12.0);
        assert!((low - 10.03676).abs() < 1e-3 && (high - 13.96324).abs() < 1e-3, "{low} {high}");
        assert_eq!(Interval::of(&[3.0]), Some(Interval { mean: 3.0, half: None, cv: None }));
        assert_eq!(Interval::of(&[]), None);
        assert_eq!(Interval::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn a_ratio_and_its_inverse_have_opposite_logarithms() {
        let (a, b) = ([1.0, 2.0, 4.0], [2.0, 3.0, 9.0]);
        let (there, back) = (paired_ratio(&a, &b).unwrap(), paired_ratio(&b, &a).unwrap());
        assert!((there.mean + back.mean).abs() < 1e-12 && there.half == back.half);
        // The geometric mean of 2, 1.5 and 2.25.
        assert!((there.mean.exp() - 6.75f64.powf(1.0 / 3.0)).abs() < 1e-12);
    }
}
