"""LARS, SGD with momentum, AdamW, and LAMB from tensorflow-addons.

`build` gives an optimizer its variables; `apply` then takes gradients that are already summed over the replicas. The
update rule is a pure function of one variable's values, so every strategy gives the same result.
"""

from __future__ import annotations

from collections.abc import Sequence

from simclr_tf.core import checks
from simclr_tf.core.tf import addons, tf


def trust_ratio(weight_norm: tf.Tensor, update_norm: tf.Tensor, *, trust_coefficient: float) -> tf.Tensor:
    """Returns LARS's factor: trust_coefficient * |w| / |update|, or 1 where either norm is 0 (You et al. 2017)."""
    usable = (weight_norm > 0) & (update_norm > 0)
    # `tf.where` computes both branches: without the 1 this one would divide by 0.
    safe = tf.where(usable, update_norm, tf.ones_like(update_norm))
    return tf.where(usable, trust_coefficient * weight_norm / safe, tf.ones_like(weight_norm))


def _check(owner: str, *, weight_decay: float, **fractions: float) -> None:
    for name, value in fractions.items():
        checks.number(f"{owner}.{name}", value, least=0, most=1)
    checks.number(f"{owner}.weight_decay", weight_decay, least=0, most=10)


class Optimizer(tf.Module):
    """Base class of optimizers. Subclasses set `slot_names` and implement `rule`."""

    slot_names: tuple[str, ...] = ()

    def build(self, variables: Sequence[tf.Variable], excluded: set[int]) -> None:
        """Creates the slots, filled with zeros. Call it inside the strategy's scope.

        Args:
          variables: all trainable variables, in a fixed order.
          excluded: `id()`s of the variables that take neither weight decay nor a trust ratio.
        """
        self._targets = list(variables)
        self._excluded = [id(variable) in excluded for variable in variables]
        # Lists, so that a checkpoint's keys follow the order of the variables and not their names.
        self.slots = {
            name: [tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False, name=name) for v in variables]
            for name in self.slot_names
        }

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, step: tf.Tensor) -> None:
        """Updates every variable. Call it inside a replica's step.

        Args:
          gradients: one gradient per variable, equal on every replica.
          learning_rate: scalar.
          step: scalar, counted from 0.
        """
        rows = [
            (variable, excluded, tuple(self.slots[name][i] for name in self.slot_names))
            for i, (variable, excluded) in enumerate(zip(self._targets, self._excluded))
        ]

        def update(variable, gradient, rate, count, excluded, *slots):
            dtype = variable.dtype
            value, new_slots = self.rule(
                tf.convert_to_tensor(variable),
                tf.cast(gradient, dtype),
                tuple(tf.convert_to_tensor(slot) for slot in slots),
                learning_rate=tf.cast(rate, dtype),
                step=tf.cast(count, dtype),
                excluded=excluded,
            )
            for slot, new_slot in zip(slots, new_slots):
                slot.assign(new_slot)
            variable.assign(value)

        def update_all(strategy, gradients, rate, count):
            for (variable, excluded, slots), gradient in zip(rows, gradients):
                strategy.extended.update(variable, update, args=(gradient, rate, count, excluded, *slots), group=False)

        # Mirrored variables may only be assigned in the cross-replica context.
        context = tf.distribute.get_replica_context()
        context.merge_call(update_all, args=(list(gradients), learning_rate, step))

    def rule(self, value, gradient, slots, *, learning_rate, step, excluded):
        """Returns a variable's new value and a tuple of its new slots; all tensors have the variable's type."""
        raise NotImplementedError


class Lars(Optimizer):
    """v <- m v + lr * ratio * (g + wd w);  w <- w - v (You et al. 2017, in the published SimCLR's form).

    Excluded variables take plain momentum. The ratio stays on with a weight decay of 0.
    """

    slot_names = ("momentum",)

    def __init__(self, momentum: float = 0.9, weight_decay: float = 1e-4, trust_coefficient: float = 0.001):
        """Sets the constants.

        Args:
          momentum: m, in [0, 1].
          weight_decay: wd, in [0, 10]; batch norm, biases and the classifier take none.
          trust_coefficient: factor of the trust ratio, in [0, 1].
        """
        super().__init__()
        _check(
            "Lars",
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
        )
        self._momentum, self._weight_decay, self._trust_coefficient = momentum, weight_decay, trust_coefficient

    def rule(self, value, gradient, slots, *, learning_rate, step, excluded):
        """See `Optimizer.rule`."""
        if not excluded:
            gradient += self._weight_decay * value
            ratio = trust_ratio(tf.norm(value), tf.norm(gradient), trust_coefficient=self._trust_coefficient)
            learning_rate *= ratio
        velocity = self._momentum * slots[0] + learning_rate * gradient
        return value - velocity, (velocity,)


class Sgd(Optimizer):
    """v <- m v + g + wd w;  w <- w - lr v, or with Nesterov's look-ahead w <- w - lr (g + m v)."""

    slot_names = ("momentum",)

    def __init__(self, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0):
        """Sets the constants.

        Args:
          momentum: m, in [0, 1].
          nesterov: whether to look ahead along the velocity.
          weight_decay: wd, in [0, 10]; batch norm, biases and the classifier take none.
        """
        super().__init__()
        _check("Sgd", momentum=momentum, weight_decay=weight_decay)
        self._momentum, self._nesterov, self._weight_decay = momentum, nesterov, weight_decay

    def rule(self, value, gradient, slots, *, learning_rate, step, excluded):
        """See `Optimizer.rule`."""
        if self._weight_decay and not excluded:
            gradient += self._weight_decay * value
        velocity = self._momentum * slots[0] + gradient
        direction = gradient + self._momentum * velocity if self._nesterov else velocity
        return value - learning_rate * direction, (velocity,)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Kingma & Ba 2015; Loshchilov & Hutter 2019); Adam when the decay is 0."""

    slot_names = ("mean", "square")

    def __init__(self, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8, weight_decay: float = 0.0):
        """Sets the constants.

        Args:
          beta_1: decay rate of the gradient's moving average, in [0, 1].
          beta_2: decay rate of the squared gradient's moving average, in [0, 1].
          epsilon: constant added to the root of the squared gradient's average, in [0, 1].
          weight_decay: weight decay, in [0, 10]; batch norm, biases and the classifier take none.
        """
        super().__init__()
        _check(
            "AdamW",
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=weight_decay,
        )
        self._beta_1, self._beta_2, self._epsilon, self._weight_decay = beta_1, beta_2, epsilon, weight_decay

    def rule(self, value, gradient, slots, *, learning_rate, step, excluded):
        """See `Optimizer.rule`."""
        mean = self._beta_1 * slots[0] + (1 - self._beta_1) * gradient
        square = self._beta_2 * slots[1] + (1 - self._beta_2) * tf.square(gradient)
        unbiased_mean = mean / (1 - tf.pow(tf.constant(self._beta_1, value.dtype), step + 1))
        unbiased_square = square / (1 - tf.pow(tf.constant(self._beta_2, value.dtype), step + 1))
        direction = unbiased_mean / (tf.sqrt(unbiased_square) + self._epsilon)
        if self._weight_decay and not excluded:
            direction += self._weight_decay * value
        return value - learning_rate * direction, (mean, square)


class Lamb(Optimizer):
    """LAMB (You et al. 2020), implemented by tensorflow-addons, which needs Python 3.9-3.11.

    Excluded variables take neither weight decay nor a trust ratio. Addons excludes variables by name, so two of its
    optimizers share the work: one takes the excluded variables, the other all the rest.
    """

    def __init__(self, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-6, weight_decay: float = 1e-4):
        """Sets the constants.

        Args:
          beta_1: decay rate of the gradient's moving average, in [0, 1].
          beta_2: decay rate of the squared gradient's moving average, in [0, 1].
          epsilon: constant added to the root of the squared gradient's average, in [0, 1].
          weight_decay: weight decay, in [0, 10]; batch norm, biases and the classifier take none.

        Raises:
          UserError: if tensorflow-addons is not installed.
        """
        super().__init__()
        self._make = addons("the LAMB optimizer").optimizers.LAMB
        _check(
            "Lamb",
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=weight_decay,
        )
        self._moments = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
        self._weight_decay = weight_decay

    def build(self, variables: Sequence[tf.Variable], excluded: set[int]) -> None:
        """See `Optimizer.build`."""
        self._excluded = [id(variable) in excluded for variable in variables]
        self._targets = list(variables)
        everything = [".*"]
        settings = {"learning_rate": lambda: self._rate, **self._moments}
        self.decayed = self._make(weight_decay=self._weight_decay, **settings)
        self.plain = self._make(
            exclude_from_weight_decay=everything, exclude_from_layer_adaptation=everything, **settings
        )
        # Otherwise Keras would create the slots in the first step, after a checkpoint has been restored.
        for optimizer, members in self._parts():
            optimizer._create_all_weights(members)

    @property
    def variables(self) -> tuple[tf.Variable, ...]:
        """All slots, counters and constants; `tf.Module` does not find those of Keras optimizers."""
        found = list(super().variables)
        for optimizer in (self.decayed, self.plain):
            found += optimizer.variables()
            found += [constant for constant in optimizer._hyper.values() if isinstance(constant, tf.Variable)]
        return tuple(found)

    def _parts(self):
        for optimizer, wanted in ((self.decayed, False), (self.plain, True)):
            yield optimizer, [v for v, excluded in zip(self._targets, self._excluded) if excluded is wanted]

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, step: tf.Tensor) -> None:
        """See `Optimizer.apply`."""
        # Addons' optimizers take a function, not a tensor, and call it while they are traced, which is now.
        self._rate = learning_rate
        by_variable = {id(v): g for v, g in zip(self._targets, gradients)}
        for optimizer, members in self._parts():
            pairs = [(by_variable[id(v)], v) for v in members]
            # The gradients are already summed over the replicas.
            optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)
