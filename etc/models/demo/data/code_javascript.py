"""The JavaScript answers by task. Data only."""

JAVASCRIPT = {
    "bubble": """function bubbleSort(arr) {
  const n = arr.length;
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n - i - 1; j++) {
      if (arr[j] > arr[j + 1]) {
        [arr[j], arr[j + 1]] = [arr[j + 1], arr[j]];
      }
    }
  }
  return arr;
}""",
    "quick": """function quickSort(arr) {
  if (arr.length <= 1) return arr;
  const pivot = arr[Math.floor(arr.length / 2)];
  const left = arr.filter((x) => x < pivot);
  const middle = arr.filter((x) => x === pivot);
  const right = arr.filter((x) => x > pivot);
  return [...quickSort(left), ...middle, ...quickSort(right)];
}""",
    "merge": """function mergeSort(arr) {
  if (arr.length <= 1) return arr;
  const mid = Math.floor(arr.length / 2);
  const left = mergeSort(arr.slice(0, mid));
  const right = mergeSort(arr.slice(mid));
  const result = [];
  while (left.length && right.length) {
    result.push(left[0] <= right[0] ? left.shift() : right.shift());
  }
  return [...result, ...left, ...right];
}""",
    "insertion": """function insertionSort(arr) {
  for (let i = 1; i < arr.length; i++) {
    const key = arr[i];
    let j = i - 1;
    while (j >= 0 && arr[j] > key) {
      arr[j + 1] = arr[j];
      j--;
    }
    arr[j + 1] = key;
  }
  return arr;
}""",
    "selection": """function selectionSort(arr) {
  for (let i = 0; i < arr.length; i++) {
    let smallest = i;
    for (let j = i + 1; j < arr.length; j++) {
      if (arr[j] < arr[smallest]) smallest = j;
    }
    [arr[i], arr[smallest]] = [arr[smallest], arr[i]];
  }
  return arr;
}""",
    "sort": """function sortNumbers(numbers) {
  return [...numbers].sort((a, b) => a - b);
}""",
    "binary": """function binarySearch(arr, target) {
  let low = 0, high = arr.length - 1;
  while (low <= high) {
    const mid = Math.floor((low + high) / 2);
    if (arr[mid] === target) return mid;
    if (arr[mid] < target) low = mid + 1;
    else high = mid - 1;
  }
  return -1;
}""",
    "linear": """function linearSearch(arr, target) {
  for (let i = 0; i < arr.length; i++) {
    if (arr[i] === target) return i;
  }
  return -1;
}""",
    "factorial": """function factorial(n) {
  if (n <= 1) return 1;
  return n * factorial(n - 1);
}""",
    "factorial_loop": """function factorial(n) {
  let result = 1;
  for (let i = 2; i <= n; i++) result *= i;
  return result;
}""",
    "fibonacci": """function fibonacci(n) {
  const result = [];
  let [a, b] = [0, 1];
  for (let i = 0; i < n; i++) {
    result.push(a);
    [a, b] = [b, a + b];
  }
  return result;
}""",
    "fibonacci_rec": """function fib(n) {
  if (n <= 1) return n;
  return fib(n - 1) + fib(n - 2);
}""",
    "gcd": """function gcd(a, b) {
  while (b) {
    [a, b] = [b, a % b];
  }
  return a;
}""",
    "lcm": """function lcm(a, b) {
  let [x, y] = [a, b];
  while (y) {
    [x, y] = [y, x % y];
  }
  return (a * b) / x;
}""",
    "prime": """function isPrime(n) {
  if (n < 2) return false;
  for (let i = 2; i * i <= n; i++) {
    if (n % i === 0) return false;
  }
  return true;
}""",
    "primes": """function primes(n) {
  const result = [];
  for (let i = 2; i <= n; i++) {
    if (result.every((p) => i % p)) result.push(i);
  }
  return result;
}""",
    "palindrome": """function isPalindrome(s) {
  return s === [...s].reverse().join("");
}""",
    "reverse": """function reverseString(s) {
  return [...s].reverse().join("");
}""",
    "word_count": """function wordCount(text) {
  return text.split(/\\s+/).filter(Boolean).length;
}""",
    "vowels": """function countVowels(s) {
  return [...s.toLowerCase()].filter((c) => "aeiou".includes(c)).length;
}""",
    "maximum": """function findMax(arr) {
  let largest = arr[0];
  for (const x of arr) {
    if (x > largest) largest = x;
  }
  return largest;
}""",
    "sum": """function sumList(arr) {
  let total = 0;
  for (const x of arr) total += x;
  return total;
}""",
    "average": """function average(arr) {
  return arr.reduce((a, b) => a + b, 0) / arr.length;
}""",
    "even": """function isEven(n) {
  return n % 2 === 0;
}""",
    "power": """function power(base, exponent) {
  let result = 1;
  for (let i = 0; i < exponent; i++) result *= base;
  return result;
}""",
    "unique": """function unique(arr) {
  return [...new Set(arr)];
}""",
    "leap": """function isLeapYear(year) {
  return (year % 4 === 0 && year % 100 !== 0) || year % 400 === 0;
}""",
    "digits": """function digitSum(n) {
  let total = 0;
  while (n > 0) {
    total += n % 10;
    n = Math.floor(n / 10);
  }
  return total;
}""",
    "two_sum": """function twoSum(nums, target) {
  const seen = new Map();
  for (let i = 0; i < nums.length; i++) {
    if (seen.has(target - nums[i])) return [seen.get(target - nums[i]), i];
    seen.set(nums[i], i);
  }
  return [];
}""",
    "fizzbuzz": """function fizzBuzz(n) {
  for (let i = 1; i <= n; i++) {
    if (i % 15 === 0) console.log("FizzBuzz");
    else if (i % 3 === 0) console.log("Fizz");
    else if (i % 5 === 0) console.log("Buzz");
    else console.log(i);
  }
}""",
    "hello": """console.log("Hello, World!");""",
}
