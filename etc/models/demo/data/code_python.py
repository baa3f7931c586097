"""The Python answers by task. Data only; `test_demo_answers.py` runs what comes back."""

PYTHON = {
    "bubble": """def bubble_sort(arr):
    n = len(arr)
    for i in range(n):
        for j in range(0, n - i - 1):
            if arr[j] > arr[j + 1]:
                arr[j], arr[j + 1] = arr[j + 1], arr[j]
    return arr""",
    "quick": """def quick_sort(arr):
    if len(arr) <= 1:
        return arr
    pivot = arr[len(arr) // 2]
    left = [x for x in arr if x < pivot]
    middle = [x for x in arr if x == pivot]
    right = [x for x in arr if x > pivot]
    return quick_sort(left) + middle + quick_sort(right)""",
    "merge": """def merge_sort(arr):
    if len(arr) <= 1:
        return arr
    mid = len(arr) // 2
    left = merge_sort(arr[:mid])
    right = merge_sort(arr[mid:])
    result = []
    while left and right:
        if left[0] <= right[0]:
            result.append(left.pop(0))
        else:
            result.append(right.pop(0))
    return result + left + right""",
    "insertion": """def insertion_sort(arr):
    for i in range(1, len(arr)):
        key = arr[i]
        j = i - 1
        while j >= 0 and arr[j] > key:
            arr[j + 1] = arr[j]
            j -= 1
        arr[j + 1] = key
    return arr""",
    "selection": """def selection_sort(arr):
    for i in range(len(arr)):
        smallest = i
        for j in range(i + 1, len(arr)):
            if arr[j] < arr[smallest]:
                smallest = j
        arr[i], arr[smallest] = arr[smallest], arr[i]
    return arr""",
    "sort": """def sort_numbers(numbers):
    return sorted(numbers)""",
    "binary": """def binary_search(arr, target):
    low, high = 0, len(arr) - 1
    while low <= high:
        mid = (low + high) // 2
        if arr[mid] == target:
            return mid
        if arr[mid] < target:
            low = mid + 1
        else:
            high = mid - 1
    return -1""",
    "linear": """def linear_search(arr, target):
    for i, value in enumerate(arr):
        if value == target:
            return i
    return -1""",
    "factorial": """def factorial(n):
    if n <= 1:
        return 1
    return n * factorial(n - 1)""",
    "factorial_loop": """def factorial(n):
    result = 1
    for i in range(2, n + 1):
        result *= i
    return result""",
    "fibonacci": """def fibonacci(n):
    result = []
    a, b = 0, 1
    for _ in range(n):
        result.append(a)
        a, b = b, a + b
    return result""",
    "fibonacci_rec": """def fib(n):
    if n <= 1:
        return n
    return fib(n - 1) + fib(n - 2)""",
    "gcd": """def gcd(a, b):
    while b:
        a, b = b, a % b
    return a""",
    "lcm": """def lcm(a, b):
    x, y = a, b
    while y:
        x, y = y, x % y
    return a * b // x""",
    "prime": """def is_prime(n):
    if n < 2:
        return False
    for i in range(2, int(n ** 0.5) + 1):
        if n % i == 0:
            return False
    return True""",
    "primes": """def primes(n):
    result = []
    for i in range(2, n + 1):
        if all(i % p for p in result):
            result.append(i)
    return result""",
    "palindrome": """def is_palindrome(s):
    return s == s[::-1]""",
    "reverse": """def reverse_string(s):
    return s[::-1]""",
    "word_count": """def word_count(text):
    return len(text.split())""",
    "vowels": """def count_vowels(s):
    return sum(1 for c in s.lower() if c in "aeiou")""",
    "maximum": """def find_max(arr):
    largest = arr[0]
    for x in arr:
        if x > largest:
            largest = x
    return largest""",
    "sum": """def sum_list(arr):
    total = 0
    for x in arr:
        total += x
    return total""",
    "average": """def average(arr):
    return sum(arr) / len(arr)""",
    "even": """def is_even(n):
    return n % 2 == 0""",
    "power": """def power(base, exponent):
    result = 1
    for _ in range(exponent):
        result *= base
    return result""",
    "unique": """def unique(arr):
    result = []
    for x in arr:
        if x not in result:
            result.append(x)
    return result""",
    "leap": """def is_leap_year(year):
    return year % 4 == 0 and year % 100 != 0 or year % 400 == 0""",
    "digits": """def digit_sum(n):
    total = 0
    while n > 0:
        total += n % 10
        n //= 10
    return total""",
    "two_sum": """def two_sum(nums, target):
    seen = {}
    for i, x in enumerate(nums):
        if target - x in seen:
            return [seen[target - x], i]
        seen[x] = i
    return []""",
    "fizzbuzz": """def fizz_buzz(n):
    for i in range(1, n + 1):
        if i % 15 == 0:
            print("FizzBuzz")
        elif i % 3 == 0:
            print("Fizz")
        elif i % 5 == 0:
            print("Buzz")
        else:
            print(i)""",
    "hello": """print("Hello, World!")""",
}
