//! Means of few repeats, with Student's 95 % interval, and how likely chance alone is to make such a mean; and the ratio of two
//! runs without repeats whose intervals are known.

/// A mean and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Half the width of the 95 % interval; `None` of a single value.
    pub half: Option<f64>,
    /// Standard deviation over the mean; `None` of a single value.
    pub cv: Option<f64>,
    /// Probability of a mean so far from 0, on either side, if the true one were 0; `None` of a single value.
    pub chance: Option<f64>,
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
            return Some(Interval { mean, half: None, cv: None, chance: None });
        }
        let deviation = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / freedom as f64).sqrt();
        let cv = (mean != 0.0).then(|| deviation / mean.abs());
        Some(Interval { cv, ..Interval::around(mean, deviation / n.sqrt(), freedom) })
    }

    /// Of a mean with its standard error, which comes of so many degrees of freedom.
    fn around(mean: f64, error: f64, freedom: usize) -> Interval {
        let chance = match (mean == 0.0, error == 0.0) {
            (true, _) => 1.0,
            (false, true) => 0.0,
            (false, false) => beyond(mean / error, freedom),
        };
        Interval { mean, half: Some(student(freedom) * error), cv: None, chance: Some(chance) }
    }

    /// Both ends.
    pub fn ends(&self) -> Option<(f64, f64)> {
        self.half.map(|half| (self.mean - half, self.mean + half))
    }
}

/// The ratio `b/a` of paired values, its 95 % interval by the logarithms' (so that a/b and b/a say the same).
pub fn paired_ratio(a: &[f64], b: &[f64]) -> Option<Interval> {
    // A difference of logarithms changes nothing but its sign when both are exchanged.
    let logs: Vec<f64> = a.iter().zip(b).map(|(a, b)| b.ln() - a.ln()).collect();
    Interval::of(&logs)
}

/// The logarithm of the ratio `b/a` of two values, each with its 95 % interval from so many blocks of one run: their variances
/// together, with the freedom of the fewer blocks. `None` where an end is no positive number.
pub fn ratio_of_runs(a: (f64, [f64; 2], usize), b: (f64, [f64; 2], usize)) -> Option<Interval> {
    let error = |(_, [low, high], blocks): (f64, [f64; 2], usize)| {
        let freedom = blocks.checked_sub(1).filter(|freedom| *freedom > 0)?;
        let known = low > 0.0 && low <= high && high.is_finite();
        known.then(|| (high.ln() - low.ln()) / (2.0 * student(freedom)))
    };
    let mean = Some(b.0.ln() - a.0.ln()).filter(|mean| mean.is_finite())?;
    Some(Interval::around(mean, error(a)?.hypot(error(b)?), a.2.min(b.2) - 1))
}

/// Holm's procedure at 5 %: which of several findings, each with the probability that chance makes it, stand together. Of many
/// findings of pure chance, one is taken for a difference in 5 % of all runs, and not in each with 5 %.
pub fn holm(chances: &[f64]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..chances.len()).collect();
    order.sort_by(|a, b| chances[*a].total_cmp(&chances[*b]));
    let mut stands = vec![false; chances.len()];
    for (rank, at) in order.into_iter().enumerate() {
        if chances[at] >= LEVEL / (chances.len() - rank) as f64 {
            break;
        }
        stands[at] = true;
    }
    stands
}

/// The 0.975 quantile of Student's distribution, by bisection.
pub fn student(freedom: usize) -> f64 {
    let (mut low, mut high) = (1.0, 20.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        *(if beyond(middle, freedom) > LEVEL { &mut low } else { &mut high }) = middle;
    }
    high
}

/// Probability that a Student variable is further from 0 than `t`, on either side.
pub fn beyond(t: f64, freedom: usize) -> f64 {
    let n = freedom as f64;
    incomplete_beta(n / (n + t * t), 0.5 * n, 0.5)
}

/// The regularised incomplete beta function, by its continued fraction (DLMF 8.17.22), evaluated from the front by Lentz's rule.
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    // It converges fast below this place; above, the other tail does.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    let front = (log_gamma(a + b) - log_gamma(a) - log_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp() / a;
    let away = |y: f64| if y.abs() < 1e-300 { 1e-300 } else { y };
    let (mut c, mut d) = (1.0, 1.0 / away(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for m in 1..1000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for term in [even, odd] {
            d = 1.0 / away(1.0 + term * d);
            c = away(1.0 + term / c);
            step = c * d;
            fraction *= step;
        }
        if (step - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front * fraction
}

/// The logarithm of the gamma function of a positive number: Stirling's series (DLMF 5.11.1) from 10 on, and below by recurrence.
fn log_gamma(x: f64) -> f64 {
    if x < 10.0 {
        return log_gamma(x + 1.0) - x.ln();
    }
    let y = 1.0 / (x * x);
    let series = (1.0 / 12.0 - y * (1.0 / 360.0 - y * (1.0 / 1260.0 - y / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series
}

/// How often pure chance may be taken for a difference.
const LEVEL: f64 = 0.05;

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
        assert_eq!(Interval::of(&[3.0]), Some(Interval { mean: 3.0, half: None, cv: None, chance: None }));
        assert_eq!(Interval::of(&[]), None);
        assert_eq!(Interval::of(&[1.0, f64::NAN]), None);
    }

    /// NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2: the 0.975 quantiles.
    #[test]
    fn quantiles_are_the_published_ones_also_beyond_thirty() {
        let published = [
            (1, 12.706),
            (2, 4.303),
            (4, 2.776),
            (9, 2.262),
            (30, 2.042),
            (31, 2.040),
            (40, 2.021),
            (60, 2.000),
            (100, 1.984),
        ];
        for (freedom, quantile) in published {
            assert!((student(freedom) - quantile).abs() < 6e-4, "{freedom}: {} {quantile}", student(freedom));
        }
        assert!((student(1_000_000) - 1.95997).abs() < 1e-4, "{}", student(1_000_000));
        // With one degree of freedom it is Cauchy's.
        assert!((beyond(3.0, 1) - (1.0 - 2.0 * 3.0f64.atan() / std::f64::consts::PI)).abs() < 1e-12);
    }

    #[test]
    fn a_ratio_and_its_inverse_have_opposite_logarithms() {
        let (a, b) = ([1.0, 2.0, 4.0], [2.0, 3.0, 9.0]);
        let (there, back) = (paired_ratio(&a, &b).unwrap(), paired_ratio(&b, &a).unwrap());
        assert!((there.mean + back.mean).abs() < 1e-12 && there.half == back.half);
        // The geometric mean of 2, 1.5 and 2.25.
        assert!((there.mean.exp() - 6.75f64.powf(1.0 / 3.0)).abs() < 1e-12);
    }

    /// Two runs of 11 blocks, 5 % and 12 % wide on either side by the logarithm: 13 % together, as 5, 12 and 13 are a right
    /// triangle's sides. Student's quantile of 10 degrees is in both and goes out.
    #[test]
    fn two_runs_have_the_variances_of_both() {
        let wide = |value: f64, by: f64| (value, [value * (-by).exp(), value * by.exp()], 11);
        let ratio = ratio_of_runs(wide(4.0, 0.05), wide(5.0, 0.12)).unwrap();
        assert!((ratio.mean - 1.25f64.ln()).abs() < 1e-12 && (ratio.half.unwrap() - 0.13).abs() < 1e-12, "{ratio:?}");
        assert!(ratio.chance.unwrap() < 0.05);
        assert!(ratio_of_runs(wide(4.0, 0.12), wide(4.5, 0.12)).unwrap().chance.unwrap() > 0.05);
        // Fewer blocks know less of the same width.
        let few = (5.0, [4.5, 5.5], 5);
        assert!(
            ratio_of_runs(few, (5.2, [4.7, 5.7], 30)).unwrap().half
                > ratio_of_runs((5.0, [4.5, 5.5], 30), (5.2, [4.7, 5.7], 30)).unwrap().half
        );
        for bad in [
            (1.0, [0.0, 1.0], 9),
            (1.0, [2.0, 1.0], 9),
            (1.0, [1.0, f64::INFINITY], 9),
            (0.0, [1.0, 1.0], 9),
            (1.0, [1.0, 1.0], 1),
            (1.0, [1.0, 1.0], 0),
        ] {
            assert_eq!(ratio_of_runs(bad, wide(1.0, 0.1)), None, "{bad:?}");
        }
    }

    /// Holm's own order: the least against 5 % over all, the next over one fewer, until one does not stand.
    #[test]
    fn many_findings_need_more_than_one_alone() {
        assert_eq!(holm(&[0.04]), [true]);
        assert_eq!(holm(&[0.04, 0.04]), [false, false]);
        assert_eq!(holm(&[0.04, 0.001, 0.9]), [false, true, false]);
        assert_eq!(holm(&[0.02, 0.03, 0.001]), [true, true, true]);
        assert_eq!(holm(&[]), [] as [bool; 0]);
    }
}
