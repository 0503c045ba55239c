"""Orders in plain English and the JSON object with the fields item, quantity, city and day that each means."""

from __future__ import annotations

import json
import random

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

ITEMS = (
    "tents", "lamps", "bicycles", "chairs", "blankets", "kettles", "ropes", "maps", "buckets", "paddles", "candles",
    "hammers", "ladders", "mirrors", "pillows", "radios", "shovels", "towels", "umbrellas", "vases", "clocks", "desks",
)  # fmt: skip
CITIES = (
    "Oslo", "Lisbon", "Vienna", "Dublin", "Prague", "Athens", "Madrid", "Warsaw", "Zurich", "Bergen", "Florence",
    "Geneva", "Hamburg", "Krakow", "Lyon", "Malaga", "Naples", "Porto", "Seville", "Turin",
)  # fmt: skip
UNSEEN_ITEMS = ("helmets", "whistles", "carpets", "baskets", "printers", "gloves")
UNSEEN_CITIES = ("Berlin", "Paris", "Rome", "Stockholm", "Brussels", "Helsinki")

TEMPLATES = (
    "Please send {quantity} {item} to {city} on {day}.",
    "I would like to order {quantity} {item} for delivery in {city} on {day}.",
    "We need {quantity} {item} in {city} by {day}.",
    "Could you ship {quantity} {item} to our office in {city}? It should arrive on {day}.",
    "On {day} our shop in {city} needs {quantity} {item}.",
    "Deliver {quantity} {item} to {city}, {day} at the latest.",
    "Hello, this is the hotel in {city}. May we have {quantity} {item} on {day}?",
    "{day} would be good for us. We are in {city} and want {quantity} {item}.",
    "Our {city} branch is asking for {quantity} {item}, to be delivered {day}.",
    "I want {quantity} {item}. Bring them to {city} this {day}, please.",
    "For {city}: {quantity} {item}, please, next {day}.",
    "Can we still get {quantity} {item} to {city} before {day}?",
    "My customer in {city} is waiting for {quantity} {item}. Please deliver on {day}.",
    "Send the {quantity} {item} that I asked for to {city} on {day}, thank you.",
)
UNSEEN_TEMPLATES = (
    "Good morning! We are short of {item} in {city}, so please deliver {quantity} of them on {day}.",
    "I need {quantity} {item} sent to {city} and they have to be there on {day}.",
    "Put me down for {quantity} {item}, to arrive in {city} on {day}.",
    "A friend in {city} has a party on {day} and would like {quantity} {item}.",
    "Please arrange for {quantity} {item} to reach {city} by {day}.",
    "{quantity} {item} to {city} for {day}, thanks.",
)


def train() -> list[tuple[str, str]]:
    chance = random.Random(12)
    return [
        _order(template, chance.choice(ITEMS), chance.choice(CITIES), chance)
        for template in TEMPLATES
        for _ in range(24)
    ]


def held_out() -> list[tuple[str, str]]:
    """Templates that were not trained on, half of them with items and cities that were not either."""
    chance = random.Random(13)
    seen = [_order(text, chance.choice(ITEMS), chance.choice(CITIES), chance) for text in UNSEEN_TEMPLATES * 3]
    unseen = [
        _order(text, chance.choice(UNSEEN_ITEMS), chance.choice(UNSEEN_CITIES), chance) for text in UNSEEN_TEMPLATES * 3
    ]
    return seen + unseen


def _order(template: str, item: str, city: str, chance: random.Random) -> tuple[str, str]:
    quantity, day = chance.randint(2, 12), chance.choice(DAYS)
    written = chance.choice((str(quantity), NUMBERS[quantity - 1]))
    if template.startswith("{quantity}"):
        written = written.capitalize()
    prompt = template.format(quantity=written, item=item, city=city, day=day)
    return prompt, json.dumps({"item": item, "quantity": quantity, "city": city, "day": day})
