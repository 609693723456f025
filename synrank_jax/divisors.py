"""What divides a number, for errors that name the values that would work."""


def divisors(number: int) -> list[int]:
    """All of them, ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]


def divisors_named(number: int) -> str:
    """All of them as text: '1, 2 or 4'."""
    *first, last = map(str, divisors(number))
    return f"{', '.join(first)} or {last}" if first else last
